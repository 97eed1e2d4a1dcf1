"""Throughput of a training."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class Throughput(Callback):
    """Measures seconds (with validation and saving), images (of all processes) and images/s (without validation)."""

    def __init__(self) -> None:
        self.train_seconds = self.validation_seconds = self._started = self._validation_started = 0.0
        self.num_images = 0

    @property
    def images_per_second(self) -> float:
        return self.num_images / max(1e-9, self.train_seconds - self.validation_seconds)

    def state_dict(self) -> dict[str, float]:
        seconds = {"train_seconds": time.perf_counter() - self._started, "validation_seconds": self.validation_seconds}
        return {**seconds, "num_images": self.num_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds, self.validation_seconds = state_dict["train_seconds"], state_dict["validation_seconds"]
        self.num_images = state_dict["num_images"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = _now(trainer) - self.train_seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.num_images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = _now(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.validation_seconds += _now(trainer) - self._validation_started

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = _now(trainer) - self._started


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()  # wait for what was queued
    return time.perf_counter()
