"""Callbacks that are not part of the project, as a user may write them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Stateful(Callback):
    """Has a state that a checkpoint cannot hold, from the given epoch on."""

    def __init__(self, from_epoch: int = 0) -> None:
        self.from_epoch, self.value = from_epoch, 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"deep": [{"best": self.value}]}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.from_epoch:
            self.value = np.float64(0.5)


class StopsAfter(Callback):
    """Stops the training after so many batches, as a limit of the time may."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 == self.batches


class Noted(Callback):
    """Has a text among its options, and does nothing."""

    def __init__(self, note: str) -> None:
        self.note = note


class Halving(Callback):
    """Changes the weights after the last epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.5)


class DeletesBest(Callback):
    """Deletes the best checkpoint after the last epoch, as a user may."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for path in Path().rglob("best.ckpt"):
            path.unlink()


class FailsInTest(Callback):
    """Has a bug that shows after the training."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise ZeroDivisionError
