"""A guard against non-finite losses and weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cifar_lit.checkpoint import first_nonfinite
from cifar_lit.errors import UserError

CHECK_STEPS = 50
"""Steps between two checks of the losses: each one waits for the device."""


class DivergedError(UserError):
    """The loss or the weights are no longer finite."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


class NonFiniteGuard(Callback):
    """Stops a training whose loss or weights are NaN or infinite, and keeps such weights from being saved."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

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
        losses = torch.stack(self._losses).float()
        self._losses = []
        if trainer.world_size > 1:  # a loss that is non-finite in one process is non-finite in the sum
            losses = trainer.strategy.reduce(losses, reduce_op="sum")
        is_bad = ~torch.isfinite(losses)
        if is_bad.any():
            first = int(is_bad.int().argmax())
            step = num_batches - len(losses) + first + 1
            place = f"step {step} of epoch {trainer.current_epoch + 1}"
            raise DivergedError(_advise(f"the loss is {float(losses[first])} in {place}", trainer))

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = first_nonfinite(pl_module.named_parameters())
        if name is not None:
            place = f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step} of the training"
            raise DivergedError(_advise(f"{name} has non-finite values {place}", trainer))


def _advise(what: str, trainer: Trainer) -> str:
    what += ": start again with a lower `lr`, or resume with `ckpt_path` last and a `gradient_clip_val` of 1"
    best = [saved.best_model_path for saved in trainer.checkpoint_callbacks if isinstance(saved, ModelCheckpoint)]
    return what + (f"; the best checkpoint so far is {best[0]}" if best and best[0] else "")
