"""The curve of the steps: which points it has, and that a resumed run has them all."""

from pathlib import Path

import pytest

from cifar_lit.callbacks.steps import StepCurve
from cifar_lit.cli.trainer import _last_point
from cifar_lit.main import main
from tests.helpers.processes import curves
from tests.helpers.runs import EPOCHS, FEW_EPOCHS, RUN

STEPS = ["--trainer.log_every_n_steps", "2"]


def test_a_curve_per_step_is_logged_on_request_and_is_the_same_after_a_resume(tiny_args: list[str]) -> None:
    assert main(["fit", *tiny_args, *EPOCHS, *STEPS]) == 0  # three epochs of six steps
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *STEPS]) == 0
    assert main(["fit", "--ckpt_path", "lightning_logs/version_1", "--trainer.max_epochs", "3"]) == 0
    whole, resumed = curves(RUN), curves(Path("lightning_logs/version_1"))
    for tag in ("Loss/step", "lr/step", "Loss/train", "Loss/val"):
        assert whole[tag] == resumed[tag], tag
    assert [step for step, _ in whole["Loss/step"]] == list(range(2, 19, 2))
    assert [rate for _, rate in whole["lr/step"]] == pytest.approx([0.01] * 9)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"), [(3, -1, 2), (None, -1, 2), (3, 13, 2), (2, -1, 12), (-1, 12, 12)]
)
def test_where_nothing_is_left_to_train_the_curves_keep_all_steps(
    max_epochs: int | None, max_steps: int, expected: int
) -> None:
    epochs = {"fit_loop": {"epoch_progress": {"current": {"processed": 2}}}}
    limits = {"max_epochs": max_epochs, "max_steps": max_steps}
    assert _last_point({"loops": epochs, "global_step": 12}, limits) == expected


def test_without_the_option_there_is_no_such_curve(run: str) -> None:
    assert not {"Loss/step", "lr/step"} & curves(RUN).keys()


def test_a_step_of_several_batches_has_one_point() -> None:
    class Trainer:
        global_step = 0
        accumulate_grad_batches = 3
        loggers: tuple[()] = ()

    class Module:
        last_lr = 0.1

    curve, trainer, module = StepCurve(2), Trainer(), Module()
    for batch in range(12):  # a step takes three batches
        trainer.global_step = (batch + 1) // 3
        curve.on_train_batch_end(trainer, module, {"loss": batch / 3}, None, batch)  # type: ignore[arg-type]
    assert [(step, loss) for step, loss, _ in curve.points] == [(2, 5.0), (4, 11.0)]
    other = StepCurve(2)
    other.load_state_dict(curve.state_dict())
    assert other.points == curve.points
