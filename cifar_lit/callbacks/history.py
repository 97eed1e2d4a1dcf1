"""The metrics of each epoch: in the checkpoint, and in ``metrics.csv``."""

import csv
import io
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.run import HISTORY, read_history
from cifar_lit.run_writer import RunWriter

COLUMNS = (
    *("epoch", "step", "seconds", "lr"),
    *("Loss/train", "Accuracy/train", "Loss/val", "Accuracy/val", "MacroAccuracy/val"),
)
"""Epochs and optimizer steps that are done, seconds of training up to here, and the metrics of the epoch."""


class History(Checkpoint):
    """Keeps a row per epoch (from 1) in the checkpoint.

    A ``Checkpoint`` only by name: Lightning calls those after the module has computed the metrics of the epoch.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.rows: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, "/val")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self._add(trainer, "/train")
        seconds, lr = self.throughput.train_seconds, float(trainer.callback_metrics["lr"])
        row |= {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "seconds": seconds, "lr": lr}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[HISTORY] = {epoch: dict(row) for epoch, row in self.rows.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.rows = read_history(checkpoint)

    def to_csv(self) -> str:
        """Return the text of ``metrics.csv``: a row per epoch that ended, empty where nothing was measured."""
        others = sorted({name for row in self.rows.values() for name in row} - set(COLUMNS))  # of the user's callbacks
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*COLUMNS, *others], lineterminator="\n")
        writer.writeheader()
        for row in self.rows.values():
            if "epoch" in row:
                writer.writerow({name: f"{value:.7g}" for name, value in row.items()})
        return text.getvalue()

    def _add(self, trainer: Trainer, split: str) -> dict[str, float]:
        row = self.rows.setdefault(trainer.current_epoch + 1, {})
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith(split)}
        return row


class MetricsFile(Checkpoint):
    """Writes ``metrics.csv``, whatever the logger. It is the last: the epoch is saved before, should this fail."""

    def __init__(self, history: History, run: RunWriter) -> None:
        self.history = history
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what a run that resumes from an earlier epoch has of the later ones."""
        if self.run.num_epochs:
            self.run.save_metrics(self.history.to_csv())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add what is missing where nothing was left to train: a stop came before the last epoch was written."""
        text = self.history.to_csv()
        if text.count("\n") > 1 + self.run.num_epochs:
            self.run.save_metrics(text)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.save_metrics(self.history.to_csv())
