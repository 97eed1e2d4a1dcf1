"""The curves of a run, in its checkpoint."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cifar_lit.run import CURVES


class History(Checkpoint):
    """Keeps the metrics of each epoch (from 0) in the checkpoint, so that a report has curves whatever the logger.

    A ``Checkpoint`` only by name: Lightning calls those after the module has computed the metrics of the epoch.
    """

    def __init__(self) -> None:
        self.curves: dict[str, dict[int, float]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, "/val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add(trainer, "/train")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CURVES] = {name: dict(points) for name, points in self.curves.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.curves = {name: dict(points) for name, points in checkpoint.get(CURVES, {}).items()}

    def _add(self, trainer: Trainer, split: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.endswith(split):
                self.curves.setdefault(name, {})[trainer.current_epoch] = float(value)
