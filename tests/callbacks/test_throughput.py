"""Throughput: the time of a training, and its images per second without validation."""

import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from tests.helpers.trainers import quiet_trainer


class Slow(Callback):
    """Takes its time in validation and in training."""

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.4)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.02)


def fit(root: Path, throughput: Throughput) -> Trainer:
    """Train for two epochs of 45 images in 5 batches."""
    data = CIFAR10DataModule(source="images", root=str(root), val_size=15, batch_size=9)
    trainer = quiet_trainer(max_epochs=2, callbacks=[throughput, Slow()])
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    return trainer


def test_it_counts_training_images_over_the_time_outside_validation(tiny_root: Path) -> None:
    throughput = Throughput()
    started = time.perf_counter()
    trainer = fit(tiny_root, throughput)
    elapsed = time.perf_counter() - started
    measured = throughput.images_per_second
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    trainer.validate(trainer.lightning_module, datamodule=data, verbose=False)
    assert throughput.images_per_second == measured  # scoring afterwards changes nothing
    assert throughput.num_images == 90
    # The validation of each epoch takes 0.4 s at least.
    assert 0.8 + 10 * 0.02 < throughput.train_seconds < elapsed
    training_seconds = 90 / throughput.images_per_second
    assert 10 * 0.02 < training_seconds < throughput.train_seconds - 0.8


def test_a_resumed_training_continues_the_count(tiny_root: Path) -> None:
    throughput = Throughput()
    throughput.load_state_dict({"train_seconds": 1000.0, "num_images": 5000, "validation_seconds": 600.0})
    fit(tiny_root, throughput)
    assert throughput.num_images == 5090
    assert throughput.trained == {(0, 0): 5000, (0, 32): 45, (1, 32): 45}  # an earlier version noted no sizes
    assert 1000.8 < throughput.train_seconds < 1100
    assert throughput.images_per_second == pytest.approx(5090 / 400, rel=0.1)
    state = throughput.state_dict()
    again = Throughput()
    again.load_state_dict(state)
    assert again.trained == throughput.trained
    assert again.images_per_second == pytest.approx(throughput.images_per_second, rel=0.1)


def test_a_checkpoint_before_the_first_step_has_no_images() -> None:
    state = Throughput().state_dict()
    throughput = Throughput()
    throughput.load_state_dict(state)
    assert throughput.trained == {}


def test_outside_a_training_no_time_goes_by() -> None:
    trainer, module = quiet_trainer(), ImageClassifier(classes=["a", "b"])
    throughput = Throughput()
    assert throughput.state_dict() == {"train_seconds": 0, "validation_seconds": 0, "num_images": 0, "trained": []}
    for number in range(2):
        throughput.on_train_start(trainer, module)
        time.sleep(0.02)
        assert throughput.state_dict()["train_seconds"] > 0.02 * (number + 1)
        if number:
            throughput.on_train_end(trainer, module)
        else:
            throughput.on_exception(trainer, module, KeyboardInterrupt())
        state = throughput.state_dict()
        time.sleep(0.02)
        assert throughput.state_dict() == state
    assert state["train_seconds"] < 10  # and not the machine's uptime
