"""What a training shows in the terminal: a line per epoch, a progress bar, and the table of the network's layers."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from cifar_lit.callbacks.history import History


class ProgressBar(TQDMProgressBar):
    """A bar for the current epoch, with the loss of the last batch, which is only read to be drawn.

    Only a terminal that can redraw a line has one.
    """

    def __init__(self) -> None:
        can_redraw = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        super().__init__(refresh_rate=20 if can_redraw else 0)
        self._outputs: Any = None

    def init_train_tqdm(self) -> Tqdm:
        """Return a bar that goes when the training ends: what stays are the lines of the epochs."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the bar of an epoch, as Lightning does, which counts epochs from 0."""
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.initial = 0
        self.train_progress_bar.set_description(count_epoch(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keep the loss where it is, on the device."""
        self._outputs = outputs
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        if not trainer.training or self._outputs is None:
            return {}
        # The Trainer has divided it, because the gradients of several batches are added.
        return {"loss": f"{float(self._outputs['loss']) * trainer.accumulate_grad_batches:.3f}"}


class EpochLines(Checkpoint):
    """Prints a line at the end of each epoch, above the progress bar if there is one.

    A ``Checkpoint`` only by name, as ``History`` is, from whose rows the numbers come.
    """

    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        rows, epoch = self.history.rows, trainer.current_epoch + 1
        seconds = rows[epoch]["seconds"] - rows.get(epoch - 1, {}).get("seconds", 0.0)
        line = f"{count_epoch(trainer)}   {describe_epoch(rows[epoch])}   {seconds:.1f} s"
        bar: Any = trainer.progress_bar_callback
        if getattr(bar, "is_enabled", False):
            bar.print(line)
        else:
            print(line, flush=True)


def count_epoch(trainer: Trainer) -> str:
    """Return how an epoch is called, counted from 1: ``epoch  3/20``."""
    if trainer.max_epochs in (None, -1):
        return f"epoch {trainer.current_epoch + 1}"
    return f"epoch {trainer.current_epoch + 1:>{len(str(trainer.max_epochs))}}/{trainer.max_epochs}"


def describe_epoch(row: Mapping[str, float]) -> str:
    """Return the metrics of an epoch as text; the accuracy in training is that of its batches, as augmented."""
    accuracies = [f"{split} {row[f'Accuracy/{split}']:.4f}" for split in ("train", "val") if f"Accuracy/{split}" in row]
    return f"loss {row['Loss/train']:.4f}   accuracy {'  '.join(accuracies)}"


class NetworkSummary(ModelSummary):
    """Lists the layers of the network with their sizes, without the metrics, in 80 columns."""

    def __init__(self) -> None:
        super().__init__(max_depth=3)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        columns = dict(summary_data)
        rows = [i for i, name in enumerate(columns["Name"]) if name.split(".")[0] == "net"]
        left_out = ("Mode", "FLOPs", "In sizes")
        kept = [(title, [column[i] for i in rows]) for title, column in columns.items() if title not in left_out]
        ModelSummary.summarize(kept, *args, **kwargs)
