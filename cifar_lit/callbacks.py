"""Observers: they watch a run and change nothing in it."""

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ProgressBar(TQDMProgressBar):
    """A bar with the loss of the last batch and the last validation accuracy, which reads the loss only when it draws.

    Where the output is no terminal it prints a line per epoch instead, so that a log file stays readable.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=20 if sys.stdout.isatty() else 0)
        self._outputs: Any = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Remember the loss where it is, on the device, and draw from time to time."""
        self._outputs = outputs
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Give what stands behind the bar."""
        metrics = {}
        if trainer.training and self._outputs is not None:
            # The Trainer has divided it, for the gradients of several batches are added.
            metrics["loss"] = f"{float(self._outputs['loss']) * trainer.accumulate_grad_batches:.3f}"
        if "Accuracy/val" in trainer.callback_metrics:
            metrics["Accuracy/val"] = f"{float(trainer.callback_metrics['Accuracy/val']):.4f}"
        return metrics

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line where there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            figures = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            of = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
            print(f"epoch {trainer.current_epoch + 1}{of}  {figures}", flush=True)


class NetworkSummary(ModelSummary):
    """Lists the layers of the network with their sizes, and leaves out the metrics."""

    def __init__(self) -> None:
        super().__init__(max_depth=3)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Print the table of the network's rows, in the columns that fit a terminal of 80."""
        columns = dict(summary_data)
        rows = [i for i, name in enumerate(columns["Name"]) if name.split(".")[0] == "net"]
        left_out = ("Mode", "FLOPs", "In sizes")
        kept = [(title, [column[i] for i in rows]) for title, column in columns.items() if title not in left_out]
        ModelSummary.summarize(kept, *args, **kwargs)


class Pictures(Callback):
    """Draws into TensorBoard: the network's graph when a fit starts, and the confusion matrix of a test.

    TensorBoard's logger can draw the graph too, but does it again for each validation and test, and draws the metrics
    with it. It is one callback and not two because the Trainer asks each of them six times in every step.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the network with the example batch, in evaluation mode so that nothing in it moves."""
        net, images = pl_module.net, pl_module.example_input_array
        assert isinstance(net, nn.Module)
        assert isinstance(images, Tensor)
        if not (trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)) or trainer.ckpt_path:
            return  # a run that goes on has its graph
        modes = [(module, module.training) for module in net.modules()]
        try:
            with torch.no_grad():
                trainer.logger.experiment.add_graph(net.eval(), images.to(pl_module.device))
        except Exception as error:  # a network that cannot be traced can still be trained
            print(f"no graph in TensorBoard: the network cannot be traced ({type(error).__name__})")
        for module, was_training in modes:
            module.training = was_training

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix, once all test images are counted."""
        confusion = pl_module.test_confusion
        assert isinstance(confusion, MulticlassConfusionMatrix)
        counts = confusion.compute()  # on every rank: they add up their counts
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            figure = draw_confusion(counts.cpu().numpy(), pl_module.hparams["classes"])
            trainer.logger.experiment.add_figure("ConfusionMatrix/test", figure, trainer.current_epoch)


class Speed(Callback):
    """Measures a training, over all the times that it was stopped and taken up.

    Attributes:
        train_seconds: From the start of the first epoch to the end of the last, with validation and saving.
        num_images: Training images that were seen, over all ranks.
        images_per_second: Training images over the time that went by outside validation.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.num_images = 0
        self._started = 0.0
        self._validation_started = 0.0
        self._validation_seconds = 0.0

    @property
    def images_per_second(self) -> float:  # noqa: D102 (described above)
        return self.num_images / max(1e-9, self.train_seconds - self._validation_seconds)

    def state_dict(self) -> dict[str, float]:
        """Give what was measured so far, for a run that goes on from here."""
        train_seconds = time.perf_counter() - self._started
        return {
            "train_seconds": train_seconds,
            "num_images": self.num_images,
            "validation_seconds": self._validation_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self.train_seconds, self.num_images = state_dict["train_seconds"], state_dict["num_images"]
        self._validation_seconds = state_dict["validation_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, or let it go on."""
        self._started = _now(trainer) - self.train_seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of all ranks."""
        self.num_images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting time as training."""
        self._validation_started = _now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count time as training again."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validation_seconds += _now(trainer) - self._validation_started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.train_seconds = _now(trainer) - self._started


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()  # what was asked for is done
    return time.perf_counter()


def draw_confusion(counts: NDArray[np.int64], classes: list[str]) -> "Figure":
    """Draw a confusion matrix.

    Args:
        counts: ``(C, C)``: how many images of the row's class were taken for the column's class.
        classes: The C names.

    Returns:
        The figure: a colour for the share in the row and, up to 30 classes, the numbers.
    """
    from matplotlib.figure import Figure  # half a second that only a test with a logger needs

    size = min(20.0, 2.5 + 0.55 * len(classes))
    figure = Figure(figsize=(size, size), layout="tight")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), count in np.ndenumerate(counts if len(classes) <= 30 else counts[:0]):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure
