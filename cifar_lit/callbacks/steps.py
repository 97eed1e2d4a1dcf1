"""The curve of the steps, beside that of the epochs."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

Point = tuple[int, float, float]
"""Optimizer steps that are done, loss of the batch, learning rate of the step."""


class StepCurve(Callback):
    """Logs ``Loss/step`` (of the batch) and ``lr/step`` every so many optimizer steps; the x-axis is the step.

    A checkpoint holds the points: TensorBoard, when a run resumes, drops all steps from the number of its epoch on.

    Args:
        every: Steps between two points; each one waits for the device.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.points: list[Point] = []
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = list(state_dict["points"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                first = logger._kwargs.get("purge_step", 0)  # what is before it is still there
                for point in self.points:
                    if point[0] >= first:
                        self._log([logger], point)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step or step % self.every:  # of several batches for one step the last
            return
        self._step = step
        # The Trainer has divided it, because the gradients of several batches are added.
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.points.append((step, loss, float(pl_module.last_lr)))  # type: ignore[arg-type]
        self._log(trainer.loggers, self.points[-1])

    def _log(self, loggers: list[Any], point: Point) -> None:
        step, loss, lr = point
        for logger in loggers:
            logger.log_metrics({"Loss/step": loss, "lr/step": lr}, step=step)
