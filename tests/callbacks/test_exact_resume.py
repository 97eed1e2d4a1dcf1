"""A resumed training ends with the bits of one that was not stopped, or is refused by name before its first step."""

import shutil
import signal

import pytest
import torch

from cifar_lit.callbacks.exact_resume import get_random_state
from cifar_lit.main import main
from tests.helpers.processes import LAST, at_step, state_of
from tests.helpers.runs import EPOCHS, RUN, Refused, callback, read_metrics, read_results

WAYS = {
    "accumulation that grows": [
        *["--model.net", "tests.helpers.networks.NoisyNet"],
        *callback("GradientAccumulationScheduler", scheduling="{0: 1, 1: 2}"),
    ],
    "64-true": ["--trainer.precision", "64-true"],
    "part of the batches": ["--trainer.limit_train_batches", "0.67", *callback("EMAWeightAveraging", decay=0.9)],
    "accumulation and an average": [
        *["--trainer.accumulate_grad_batches", "4"],
        *callback("EMAWeightAveraging", decay=0.9),
    ],
    "all that is done to images": [
        *["--data.crop_padding", "2", "--data.flip", "alternating", "--data.trivial_augment", "true"],
        *["--data.mixup", "0.4", "--data.cutmix", "1", "--data.erasing", "0.5", "--data.saturation", "0.5"],
    ],
    "a limit on the time": callback("Timer", duration="00:01:00:00"),
}
SLOW = list(WAYS)[2:]


class BugError(Exception):
    """Something that nobody thought of."""


def fail() -> None:
    raise BugError


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_a_training_resumes_exactly(way: str, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["fit", *tiny_args, *EPOCHS, *WAYS[way], "--trainer.enable_model_summary", "false"]
    assert main(options) == 0
    undisturbed = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    with monkeypatch.context() as patch:
        at_step(10, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(options) == 143
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (state_of(), read_metrics()) == undisturbed


def test_after_an_exception_all_random_numbers_are_those_before_the_step(
    tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.networks import NoisyNet

    states = []
    forward = NoisyNet.forward

    def patched(net: NoisyNet, images: torch.Tensor) -> torch.Tensor:
        if net.training:
            states.append(get_random_state()[1])
        logits = forward(net, images)
        return fail() or logits if len(states) == 4 else logits  # type: ignore[func-returns-value]

    monkeypatch.setattr(NoisyNet, "forward", patched)
    with pytest.raises(BugError):
        main(["fit", *tiny_args, *EPOCHS, "--model.net", "tests.helpers.networks.NoisyNet"])
    saved = torch.load(LAST, weights_only=True)["callbacks"]["Saver"]["random_python"]
    assert (saved[0], tuple(saved[1].tolist()), saved[2]) == states[3]


def test_a_schedule_is_not_resumed_with_another_length(tiny_args: list[str], refused: Refused) -> None:
    options = ["--trainer.max_epochs", "1", "--data.batch_size", "8", "--no_report"]
    assert main(["fit", *tiny_args, *options, "--model.schedule", "linear"]) == 0
    before = LAST.read_bytes()
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert code == 2
    assert "error: the --model.schedule of the checkpoint was laid out for 6 steps, and these" in line
    assert LAST.read_bytes() == before


def test_a_run_that_was_stopped_early_says_how_it_is_trained_longer(tiny_args: list[str], refused: Refused) -> None:
    stops = callback("EarlyStopping", monitor="Accuracy/train", mode="min", patience=1)
    assert main(["fit", *tiny_args, *EPOCHS, "--trainer.max_epochs", "9", *stops]) == 0
    before, num_epochs = (RUN / "results.json").read_bytes(), read_results()["epochs"]
    assert num_epochs < 9
    code, line = refused(["fit", "--ckpt_path", "last"])
    assert code == 2
    assert "has nothing left to train, and stays as it is; it was stopped early: leave out what stopped it" in line
    assert (RUN / "results.json").read_bytes() == before
    longer = ["--trainer.callbacks", "null", "--trainer.max_steps", "20"]
    with pytest.warns(UserWarning, match="EarlyStopping"):
        assert main(["fit", "--ckpt_path", "last", *longer]) == 0
    assert read_results()["epochs"] > num_epochs
    code, line = refused(["fit", "--ckpt_path", "last", *longer])
    assert "--trainer.max_steps is 20, and it has finished them: give more" in line
