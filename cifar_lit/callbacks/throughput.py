"""Throughput of a training."""

import time
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Throughput(Callback):
    """Measures seconds (with validation and saving), images (of all processes) and images/s (without validation).

    ``trained`` has the number of images of each epoch and size (height and width). A checkpoint of an earlier version
    knows no epochs, and they count as the first; or no sizes, and they have the size 0.
    """

    def __init__(self) -> None:
        self.validation_seconds = self._validation_started = 0.0
        self.trained: Counter[tuple[int, int]] = Counter()
        self._earlier_seconds = 0.0  # of trainings that have ended
        self._started: float | None = None  # None outside a training

    @property
    def train_seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    @property
    def num_images(self) -> int:
        return self.trained.total()

    @property
    def images_per_second(self) -> float:
        return self.num_images / max(1e-9, self.train_seconds - self.validation_seconds)

    def state_dict(self) -> dict[str, Any]:
        seconds = {"train_seconds": self.train_seconds, "validation_seconds": self.validation_seconds}
        trained = [(*key, number) for key, number in self.trained.items()]
        return {**seconds, "num_images": self.num_images, "trained": trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_seconds, self.validation_seconds = state_dict["train_seconds"], state_dict["validation_seconds"]
        sizes = state_dict.get("sizes") or {0: state_dict["num_images"]}
        trained = state_dict.get("trained") or [(0, *part) for part in sizes.items()]
        self.trained = Counter({(int(epoch), int(size)): int(number) for epoch, size, number in trained if number})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = _now(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained[trainer.current_epoch, batch[0].shape[-1]] += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = _now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.validation_seconds += _now(trainer) - self._validation_started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _now(trainer)
        self._earlier_seconds, self._started = self.train_seconds, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._earlier_seconds, self._started = self.train_seconds, None


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()  # wait for what was queued
    return time.perf_counter()
