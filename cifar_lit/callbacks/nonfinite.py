"""A guard against non-finite losses and weights."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cifar_lit.checkpoint import first_nonfinite, load_checkpoint
from cifar_lit.errors import UserError
from cifar_lit.files import quote, shorten
from cifar_lit.networks.base import needed_trust
from cifar_lit.run import BEST, CHECKPOINTS, LAST
from cifar_lit.schema import leaves

CHECK_STEPS = 50
"""Steps between two checks of the losses: each one waits for the device."""
MAX_WEIGHT = 1e4
"""Of a checkpoint that a training can resume from: above, it was about to diverge when it was saved."""


class DivergedError(UserError):
    """The loss or the weights are no longer finite."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


class NonFiniteGuard(Callback):
    """Stops a training whose loss or weights are NaN or infinite, and keeps such weights from being saved.

    ``run`` is the folder that the training saves its checkpoints in; None if it saves none.
    """

    def __init__(self, run: Path | None = None) -> None:
        self.run = run
        self._losses: list[Tensor] = []
        self._rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Remember the learning rates of the step."""
        self._rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"])
        if batch_idx + 1 >= trainer.num_training_batches or len(self._losses) >= CHECK_STEPS:
            self._check_losses(trainer, num_batches=batch_idx + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no non-finite weights be validated: they might be the best."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_weights(trainer, pl_module)

    def _check_losses(self, trainer: Trainer, num_batches: int) -> None:
        losses, rates = torch.stack(self._losses).float(), self._rates
        self._losses, self._rates = [], rates[-1:]
        if trainer.world_size > 1:  # a loss that is non-finite in one process is non-finite in the sum
            losses = trainer.strategy.reduce(losses, reduce_op="sum")
        is_bad = ~torch.isfinite(losses)
        if is_bad.any():
            first = int(is_bad.int().argmax()) - len(losses)
            step = -(-(num_batches + first + 1) // trainer.accumulate_grad_batches)
            place = f"step {step} of epoch {trainer.current_epoch + 1}{_at_rates(rates[first])}"
            raise DivergedError(f"the loss is {float(losses[first])} in {place}: {self._advice(trainer)}")

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = first_nonfinite(pl_module.named_parameters())
        if name is not None:
            if self._losses:
                self._check_losses(trainer, num_batches=trainer.fit_loop.batch_idx + 1)  # which come first
            place = f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step} of the training"
            place += _at_rates(self._rates[-1]) if self._rates else ""
            raise DivergedError(f"{name} has non-finite values {place}: {self._advice(trainer)}")

    def _advice(self, trainer: Trainer) -> str:
        """Return how to go on: a command if the run has a checkpoint from which that helps, otherwise a new run."""
        if trainer.lightning_module.hparams.get("muon_lr"):  # whose steps have a fixed length, clipped or not
            return "start again with a lower `lr` and `muon_lr`"
        before = trainer.gradient_clip_val or math.inf
        clip = 1 if before > 1 else before / 10
        if (resumable := self._resumable()) is None:
            return f"start again with a lower `lr`, or with `gradient_clip_val` {clip:g}"
        path = quote(shorten(resumable)) + needed_trust(trainer.lightning_module.get_submodule("net"))
        return (
            f"start again with a lower `lr`, or resume before that with cifar-lit fit --ckpt_path {path} "
            f"--trainer.gradient_clip_val {clip:g}"
        )

    def _resumable(self) -> Path | None:
        """Return what ``--ckpt_path`` takes: the run if its last checkpoint is usable, or its best one, or None."""
        if self.run is not None:
            for path, name in ((self.run, LAST), (self.run / CHECKPOINTS / BEST, BEST)):
                if _is_usable(self.run / CHECKPOINTS / name):
                    return path
        return None


def _at_rates(rates: Iterable[float]) -> str:
    """Return ``, at a learning rate of 0.1``; of several groups of parameters each rate."""
    shown = list(dict.fromkeys(f"{rate:.3g}" for rate in rates))
    return f", at {'a learning rate' if len(shown) == 1 else 'learning rates'} of {' and '.join(shown)}"


def _is_usable(path: Path) -> bool:
    """Return whether a checkpoint exists, is complete, and has finite weights and optimizer states of usual size."""
    if not path.is_file():
        return False
    try:
        saved = load_checkpoint(path)
    except UserError:
        return False
    tensors = [(name, part) for name, part in leaves(saved["optimizer_states"]) if isinstance(part, Tensor)]
    weights = [(name, part) for name, part in saved["state_dict"].items() if part.is_floating_point()]
    is_usual = all(float(part.abs().max()) <= MAX_WEIGHT for _, part in weights if part.numel())
    return first_nonfinite([*tensors, *weights]) is None and is_usual
