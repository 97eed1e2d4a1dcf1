"""The ways in which a run can end: each leaves ``results.json`` and a run that can be tested."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cifar_lit.main import main
from tests.helpers.processes import at_step
from tests.helpers.runs import RUN, callback, read_results


class BugError(Exception):
    """Something that nobody thought of."""


def fail() -> None:
    raise BugError


@dataclass(frozen=True)
class End:
    """A way in which a run ends.

    Attributes:
        options: What is given to ``fit``.
        at: What happens in the ninth step, the third of the second epoch.
        code: The exit code; None for an exception.
        resumed: The options with which the run is resumed then; None for not at all.
        tested: The checkpoint that is tested; None if the test was not made.
        epochs: How many it has in the end; one that a limit has cut counts.
    """

    options: Sequence[str] = ()
    at: Callable[[], Any] | None = None
    code: int | None = 0
    resumed: Sequence[str] | None = None
    tested: str | None = "best"
    epochs: int = 2


def interrupt(signum: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


STOPS = callback("EarlyStopping", monitor="Accuracy/train", mode="min", patience=0)
ENDS = {
    "the last epoch": End(),
    "early stopping": End(["--trainer.max_epochs", "9", *STOPS]),
    "max_steps": End(["--trainer.max_steps", "9"]),
    "max_steps, within the first epoch": End(["--trainer.max_steps", "3"], tested="last", epochs=1),
    "max_steps, then more": End(["--trainer.max_steps", "9"], resumed=["--trainer.max_steps", "-1"]),
    "max_time": End(
        ["--trainer.max_time", "{milliseconds: 1}", "--trainer.min_epochs", "1"], resumed=["--trainer.max_time", "null"]
    ),
    "no validation": End(["--data.val_size", "0"], tested="last"),
    "no validation batch": End(["--trainer.limit_val_batches", "0"], tested="last"),
    "no validation yet": End(["--trainer.check_val_every_n_epoch", "5"], tested="last"),
    "no test batch": End(["--trainer.limit_test_batches", "0"], tested=None),
    "SIGTERM": End(at=interrupt(signal.SIGTERM), code=143, resumed=[]),
    "SIGHUP": End(at=interrupt(signal.SIGHUP), code=129, resumed=[]),
    "an exception in a step": End(at=fail, code=None, resumed=[]),
    "an exception in the test": End(callback("tests.helpers.callbacks.FailsInTest"), code=None, tested=None),
    "finished, then more epochs": End(resumed=["--trainer.max_epochs", "3"], epochs=3),
    "no best any more": End(callback("tests.helpers.callbacks.DeletesBest"), tested="last"),
    "weights that change at the end": End(callback("tests.helpers.callbacks.Halving"), tested="last"),
}
QUICK = ("max_steps, then more", "an exception in the test", "no best any more", "weights that change at the end")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in ENDS])
def test_a_run_that_ended_has_results_and_can_be_tested(
    name: str, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ENDS[name]
    options = ["--trainer.max_epochs", "2", "--data.batch_size", "8", "--no_report"]
    with monkeypatch.context() as patch:
        if end.at is not None:
            at_step(9, end.at, patch)
        if end.code is None:
            with pytest.raises((BugError, ZeroDivisionError)):
                main(["fit", *tiny_args, *options, *end.options])
        else:
            assert main(["fit", *tiny_args, *options, *end.options]) == end.code
    if end.resumed is not None:
        assert main(["fit", "--ckpt_path", "last", *end.resumed]) == 0
    results = read_results()
    assert results["epochs"] == end.epochs
    if end.tested is None:
        assert results.get("Accuracy/test") is None
    else:
        assert 0 <= results["Accuracy/test"] <= 1
        assert results["checkpoint"].endswith(f"{end.tested}.ckpt")
        assert (results["best_epoch"] is not None) == (end.tested == "best")
    assert main(["test", str(RUN)]) == 0
