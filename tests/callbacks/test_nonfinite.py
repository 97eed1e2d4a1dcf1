"""Non-finite losses and weights stop a training before they are kept."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from cifar_lit.callbacks.bars import CloseBars
from cifar_lit.callbacks.best import Best
from cifar_lit.callbacks.nonfinite import DivergedError, NonFiniteGuard
from cifar_lit.callbacks.saver import Saver
from cifar_lit.checkpoint import first_nonfinite, save_checkpoint
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from tests.helpers.processes import LAST
from tests.helpers.runs import FEW_EPOCHS, Refused
from tests.helpers.trainers import quiet_trainer

BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_first_tensor_with_a_non_finite_value_is_named(value: float, dtype: torch.dtype) -> None:
    good = torch.linspace(-9, 9, 24, dtype=dtype).reshape(2, 3, 4)
    bad = good.clone()
    bad[1, 2, 1] = value
    finite: list[tuple[str, Any]] = [
        ("weights", good),
        ("counts", torch.tensor([1, 2])),
        ("none", torch.zeros(0, dtype=dtype)),
        ("text", "nan"),
        ("largest", torch.tensor(torch.finfo(dtype).max, dtype=dtype)),
    ]
    assert first_nonfinite(finite) is None
    assert first_nonfinite([*finite, ("second", bad), ("third", bad)]) == "second"


class Spoil(Callback):
    """Changes a loss or a weight in one step.

    Args:
        step: The step of the training, counted from 1.
        value: The new value.
        weights: Change a weight after the step, not the loss.
    """

    def __init__(self, step: int, value: float, *, weights: bool = False) -> None:
        self.step, self.value, self.weights = step, value, weights

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            if self.weights:
                next(pl_module.parameters()).data[0, 0, 0, 0] = self.value
            else:
                outputs["loss"] = torch.tensor(self.value)


def fit(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """Train for three epochs of six batches."""
    data = CIFAR10DataModule(source="images", root=str(root), val_size=12, batch_size=8)
    trainer = quiet_trainer(max_epochs=3, callbacks=[*callbacks, NonFiniteGuard()], **options)
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    return trainer


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("step", "place"), [(3, "step 3 of epoch 1"), (6, "step 6 of epoch 1"), (9, "step 3 of epoch 2")]
)
def test_a_non_finite_loss_is_named_with_its_step(step: int, place: str, value: float, tiny_root: Path) -> None:
    with pytest.raises(
        DivergedError, match=f"the loss is {value} in {place}, at a learning rate of 0.01: start again"
    ) as error:
        fit(tiny_root, Spoil(step, value))
    assert error.value.exit_code == 1


def test_a_step_of_several_batches_is_counted_once(tiny_root: Path) -> None:
    with pytest.raises(DivergedError, match="the loss is nan in step 3 of epoch 1"):
        fit(tiny_root, Spoil(3, math.nan), accumulate_grad_batches=2)


def test_in_a_long_epoch_the_losses_are_checked_from_time_to_time(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.callbacks.nonfinite.CHECK_STEPS", 2)
    steps = []

    class Count(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            steps.append(trainer.global_step)

    with pytest.raises(DivergedError, match="step 3 of epoch 1"):
        fit(tiny_root, Count(), Spoil(3, math.nan))
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("has_val", [True, False])
def test_non_finite_weights_are_neither_validated_nor_kept(value: float, has_val: bool, tiny_root: Path) -> None:
    best = Best(Path("kept"))
    options = {} if has_val else {"limit_val_batches": 0}
    validated = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
            validated.append(trainer.current_epoch)

    with pytest.raises(DivergedError, match="weight has non-finite values in epoch 2, after step 12") as error:
        fit(
            tiny_root,
            best,
            Count(),
            Spoil(12, value, weights=True),
            enable_checkpointing=True,
            num_sanity_val_steps=0,
            **options,
        )
    assert validated == ([0] if has_val else [])
    assert "at a learning rate of 0.01: start again with a lower `lr`" in str(error.value)
    kept = [path.name for path in Path("kept").glob("*.ckpt")]
    assert kept == (["best.ckpt"] if has_val else [])  # that of the first epoch
    for path in Path("kept").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert first_nonfinite(weights.items()) is None


def test_a_fit_that_diverges_ends_in_one_line(tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--model.lr", "1e20"])
    assert code == 1
    place = "the loss is nan in step 2 of epoch 1, at a learning rate of 1e+20"
    assert line.endswith(f"{place}: start again with a lower --model.lr, or with --trainer.gradient_clip_val 1")
    assert not LAST.exists()


@pytest.mark.parametrize("value", BAD)
def test_a_fit_saves_no_non_finite_weights(
    value: float, tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Callable[..., None] = Saver._save

    def spoil(saver: Saver, trainer: Trainer) -> None:
        next(trainer.lightning_module.parameters()).data.fill_(value)
        save(saver, trainer)

    monkeypatch.setattr(Saver, "_save", spoil)
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS])
    assert code == 1
    assert "net.layers.conv1.weight has non-finite values in epoch 1" in line
    assert not LAST.exists()


def test_what_resumes_is_named_if_it_is_usable(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    (run / "checkpoints").mkdir(parents=True)
    model = ImageClassifier(classes=["a", "b"])
    last, best = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    trainer = quiet_trainer(max_epochs=1)
    trainer.strategy.connect(model)

    def advice(clip: float | None = None, run: Path | None = run, **options: Any) -> str:
        trainer.gradient_clip_val = clip
        model.hparams.update(options)
        return NonFiniteGuard(run)._advice(trainer)

    def save(path: Path, value: float, momentum: float = 0.0) -> None:
        state = {"state": {0: {"momentum_buffer": torch.tensor(momentum)}}}
        parts = {"hyper_parameters": {}, "datamodule_hyper_parameters": {}, "state_dict": {"w": torch.tensor(value)}}
        save_checkpoint({**parts, "optimizer_states": [state]}, path)

    assert advice() == "start again with a lower `lr`, or with `gradient_clip_val` 1"
    assert advice(0.5) == "start again with a lower `lr`, or with `gradient_clip_val` 0.05"
    resumes = "or resume before that with cifar-lit fit --ckpt_path 'a run' --trainer.gradient_clip_val 1"
    for value, momentum, is_usable in ((1e4, 0.0, True), (1.1e4, 0.0, False), (1.0, math.nan, False)):
        save(last, value, momentum)
        assert advice().endswith(resumes) is is_usable
    save(best, 1.0)
    assert "--ckpt_path 'a run/checkpoints/best.ckpt' --trainer.gradient_clip_val 1" in advice()
    last.write_bytes(b"damaged")
    assert "best.ckpt" in advice()
    assert "resume" not in advice(run=None)
    assert advice(0.5, muon_lr=0.1) == "start again with a lower `lr` and `muon_lr`"  # clipping changes no step of Muon


def test_the_rate_is_that_of_the_step_in_each_group(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=8)
    options = {"lr": 0.1, "muon_lr": 0.2, "schedule": "constant", "warmup_epochs": 1.0}
    trainer = quiet_trainer(max_epochs=1, callbacks=[Spoil(3, math.nan), NonFiniteGuard()])
    with pytest.raises(DivergedError, match=r"in step 3 of epoch 1, at learning rates of 0.06 and 0.12: start"):
        trainer.fit(ImageClassifier(classes=data.classes, **options), datamodule=data)  # type: ignore[arg-type]


def test_the_error_begins_below_the_bar(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = TQDMProgressBar()
    with pytest.raises(DivergedError):
        fit(tiny_root, CloseBars(), bar, Spoil(3, math.nan), enable_progress_bar=True)
    assert bar.train_progress_bar.disable  # closed, and not drawn again
    assert capsys.readouterr().out.endswith("\n")
