"""What a training shows in the terminal: a progress bar, and the table of the network's layers."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """A bar with the loss of the last batch and the last validation accuracy; the loss is only read to be drawn.

    Where the output is not a terminal it prints a line per epoch instead, which keeps a log file readable.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=20 if sys.stdout.isatty() else 0)
        self._outputs: Any = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keep the loss where it is, on the device."""
        self._outputs = outputs
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = {}
        if trainer.training and self._outputs is not None:
            # The Trainer has divided it, because the gradients of several batches are added.
            metrics["loss"] = f"{float(self._outputs['loss']) * trainer.accumulate_grad_batches:.3f}"
        if "Accuracy/val" in trainer.callback_metrics:
            metrics["Accuracy/val"] = f"{float(trainer.callback_metrics['Accuracy/val']):.4f}"
        return metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            metrics = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            of = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
            print(f"epoch {trainer.current_epoch + 1}{of}  {metrics}", flush=True)


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
