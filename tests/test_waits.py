"""No step waits for the device: trainings on a device without values, and on a GPU with waiting forbidden."""

import collections
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_lit.cli.fit import fit
from cifar_lit.cli.trainer import build_trainer
from cifar_lit.metrics import MeanLoss

FIRST, LAST = 2, 6
"""Batches in the middle of an epoch, counted from 0, between which nothing may wait."""
STEPS = ["--data.val_size", "0", "--trainer.max_epochs", "1", "--trainer.enable_model_summary", "false"]
BARE = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--no_report"]
NARROW = ["--model.net.widths", "[8,8,8]"]
SETTINGS = {
    "gpu94": ["--recipe", "gpu94", *NARROW],
    "strong": ["--recipe", "strong", *NARROW],
    "augmentation": [
        *["--data.crop_padding", "2", "--data.flip", "random", "--data.cutout", "8", "--data.erasing", "0.5"],
        *["--data.brightness", "0.4", "--data.contrast", "0.4", "--data.saturation", "0.4"],
        *["--data.mixup", "0.2", "--data.cutmix", "1"],
    ],
    "trivial_augment": ["--data.trivial_augment", "true"],
    "gradients": [
        *["--trainer.gradient_clip_val", "1", "--trainer.accumulate_grad_batches", "2"],
        *["--model.class_weights", "balanced", "--model.label_smoothing", "0.1"],
        *["--model.schedule", "cosine", "--model.warmup_epochs", "0.5", "--model.momentum", "0.9"],
    ],
}

TAKE_LONG = {"strong", "trivial_augment"}


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that have tensors of two devices: copies, and what reads a CPU's tensor on the other."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0
        self.found: collections.Counter[str] = collections.Counter()

    def stop(self) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {one.device for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)}
        self.num_operations += 1
        self.found[str(func)] += len(devices) > 1
        return result


class Middle(Callback):
    """Calls ``begin`` in the middle of an epoch, ``end`` some steps later; the training then ends there if asked to."""

    def __init__(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        self.begin, self.end = begin, end

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST - 1:
            self.begin()

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == LAST:
            self.end()


class Stopped(SystemExit):
    """The steps in the middle were made."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callback], None]:
    """Return a function that adds a callback to each fit, before all others."""

    def add(callback: Callback) -> None:
        def build(*args: Any) -> Trainer:
            trainer = build_trainer(*args)
            trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
            return trainer

        monkeypatch.setattr("cifar_lit.cli.fit.build_trainer", build)

    return add


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fits run on torch's meta device: whatever reads a value there is an error."""
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda _: torch.device("meta")))
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", lambda _: None)  # it would copy the weights to the CPU
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda *_: None)
    # What waits once, before the first step: the length of the epoch, and the range of resized images.
    monkeypatch.setattr("lightning.pytorch.loops.fit_loop.has_len_all_ranks", lambda *_: True)
    monkeypatch.setattr("cifar_lit.data.loader.check_values", lambda _: None)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in TAKE_LONG)) for n in SETTINGS])
@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_a_step_reads_no_value_and_copies_nothing_to_the_device(
    name: str, tiny_args: list[str], without_values: None, watch: Callable[[Callback], None]
) -> None:
    copies = Copies()

    def end() -> None:
        copies.stop()
        raise Stopped

    watch(Middle(copies.__enter__, end))
    with pytest.raises(Stopped):
        fit([*SETTINGS[name], *tiny_args, *STEPS, *BARE, "--data.batch_size", "5", "--trainer.accelerator", "cpu"])
    assert copies.num_operations > 100
    assert not +copies.found


def test_what_a_step_must_not_do_is_noticed(
    tiny_args: list[str], without_values: None, watch: Callable[[Callback], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*tiny_args, *STEPS, *BARE, "--data.batch_size", "5", "--trainer.accelerator", "cpu"]
    copies = Copies()
    watch(Middle(copies.__enter__, copies.stop))
    update = MeanLoss.update

    def copying(self: Any, loss: Tensor, num_images: int) -> None:
        update(self, loss * torch.tensor([1.0]).to(loss.device)[0], num_images)

    def reading(self: Any, loss: Tensor, num_images: int) -> None:
        update(self, loss, num_images if float(loss) else 0)

    monkeypatch.setattr(MeanLoss, "update", copying)
    with pytest.raises((RuntimeError, NotImplementedError)):  # of the end of the epoch, which reads
        fit(options)
    assert +copies.found == {"aten._to_copy.default": LAST - FIRST}
    monkeypatch.setattr(MeanLoss, "update", reading)
    with pytest.raises(RuntimeError, match="item"):
        fit(options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_step_on_a_gpu_does_not_wait(name: str, tiny_args: list[str], watch: Callable[[Callback], None]) -> None:
    def forbid() -> None:
        torch.cuda.set_sync_debug_mode("error")

    def allow() -> None:
        torch.cuda.set_sync_debug_mode("default")

    watch(Middle(forbid, allow))
    with warnings.catch_warnings(action="ignore"):  # the debug mode warns that it is in beta
        try:
            results = fit([*SETTINGS[name], *tiny_args, *STEPS, *BARE, "--data.batch_size", "5"])
        finally:
            allow()
    assert results is not None
