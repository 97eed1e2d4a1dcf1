"""Workarounds for other packages: each test fails once the package is mended, and says what can be deleted then."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import multiclass_calibration_error


class Loader:
    """Two batches, and a position that Lightning may save and restore."""

    batch_sampler = sampler = None

    def __init__(self) -> None:
        self.loaded: list[dict[str, int]] = []

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(2, 1, 1))

    def state_dict(self) -> dict[str, int]:
        return {"position": 1}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.loaded.append(state_dict)


class Module(LightningModule):
    def __init__(self, asks_for_steps: bool = False) -> None:
        super().__init__()
        self.asks_for_steps = asks_for_steps
        self.layer = nn.Linear(1, 1, bias=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.tested = self.layer.weight.detach().clone()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", **{**quiet, **options})


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("asks_for_steps", [False, True])
def test_lightning_forgets_the_position_of_a_loader_where_the_steps_are_asked_for(asks_for_steps: bool) -> None:
    """Lightning #20550. Then: BatchLoader.start_at and its call in Saver.on_train_start; give the loader a state."""
    trainer = make_trainer(max_steps=1)
    trainer.fit(Module(), Loader())
    trainer.save_checkpoint("middle.ckpt", weights_only=False)
    loader = Loader()
    make_trainer(max_steps=2, max_epochs=1).fit(Module(asks_for_steps), loader, ckpt_path="middle.ckpt")
    assert bool(loader.loaded) is not asks_for_steps


def test_lightning_saves_checkpoints_without_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning #21253, #21744. Then: SafeCheckpointIO.save_checkpoint."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    TorchCheckpointIO().save_checkpoint({"weights": torch.ones(1)}, Path("some.ckpt"))
    assert Path("some.ckpt").is_file()
    assert not flushed


def test_mean_metric_without_its_check_for_nan_ignores_weights() -> None:
    """Torchmetrics #3434. Then: MeanLoss."""
    metric = MeanMetric(nan_strategy="disable")
    metric.update(1.0, weight=1)
    metric.update(4.0, weight=3)
    assert metric.compute() == 2.5


def test_the_calibration_error_has_a_bin_more_for_confidences_of_one() -> None:
    """Torchmetrics #3510. Then: calibration_error in metrics.py."""
    probabilities = torch.tensor([[1.0, 0.0], [0.99, 0.01]])
    labels = torch.tensor([1, 0])  # one of two is right, and the mean confidence is 0.995
    assert float(multiclass_calibration_error(probabilities, labels, 2, n_bins=15)) == pytest.approx((1 + 0.01) / 2)


def test_a_metric_in_a_module_takes_its_dtype() -> None:
    """No upstream issue yet (torchmetrics 1.9): the guard knows Module.half and not Module.to. Then: ExactMetric."""
    module = nn.ModuleList([MeanMetric()])
    assert module.half()[0].mean_value.dtype == torch.float32
    assert module.to(torch.float16)[0].mean_value.dtype == torch.float16


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_an_incomplete_accumulation_is_divided_as_if_it_were_complete() -> None:
    """No upstream issue yet (Lightning 2.6). Then: mean_factor in optim.py, and ImageClassifier.backward."""
    module = Module()
    weight = module.layer.weight.item()
    make_trainer(max_epochs=1, accumulate_grad_batches=4).fit(module, Loader())  # of two batches
    assert module.layer.weight.item() == pytest.approx(weight - 0.1 * (2 * weight + 2 * weight) / 4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_weights_in_float64_are_rounded_when_they_are_restored() -> None:
    """No upstream issue yet (Lightning 2.6). Then: the second part of ImageClassifier.on_load_checkpoint."""
    options = {"precision": "64-true", "max_epochs": 1}
    trainer, module = make_trainer(**options), Module()
    trainer.fit(module, Loader())
    module.layer.weight.data.fill_(1 / 3)
    trainer.save_checkpoint("double.ckpt", weights_only=False)
    module = Module()
    make_trainer(**options).fit(module, Loader(), ckpt_path="double.ckpt")
    assert module.layer.weight.dtype == torch.float64
    assert module.layer.weight.item() != 1 / 3


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_steps_are_estimated_by_the_accumulation_of_the_first_epoch() -> None:
    """No upstream issue yet (Lightning 2.6). Then: count_steps in optim.py."""
    trainer = make_trainer(max_epochs=3, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    trainer.fit(Module(asks_for_steps=True), Loader())
    assert trainer.global_step == 4
    trainer.accumulate_grad_batches = 1
    assert trainer.estimated_stepping_batches == 6


def test_muon_of_torch_takes_no_filters() -> None:
    """Pytorch #166209. Then: orthogonalize and Muon in optim.py, if it can also work in float32."""
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([nn.Parameter(torch.zeros(2, 2, 3, 3))])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_test_of_a_checkpoint_with_averaged_weights_takes_those_of_the_last_step() -> None:
    """No upstream issue yet (Lightning 2.6). Then: fit may pass ckpt_path to trainer.test."""
    trainer = make_trainer(max_epochs=2, callbacks=[EMAWeightAveraging(decay=0.5)])
    module = Module()
    module.on_train_epoch_end = lambda: trainer.save_checkpoint("averaged.ckpt", weights_only=False)  # type: ignore[method-assign]
    trainer.fit(module, Loader())
    checkpoint = torch.load("averaged.ckpt", weights_only=True)
    trainer.test(module, Loader(), ckpt_path="averaged.ckpt", verbose=False, weights_only=True)
    assert torch.equal(module.tested, checkpoint["current_model_state"]["layer.weight"])
    assert not torch.equal(module.tested, checkpoint["state_dict"]["layer.weight"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_an_epoch_that_ends_with_max_steps_is_not_completed() -> None:
    """No upstream issue yet (Lightning 2.6). Then: the first part of Saver.on_load_checkpoint."""
    trainer = make_trainer(max_steps=2)
    trainer.fit(Module(), Loader())
    trainer.save_checkpoint("end.ckpt", weights_only=False)
    loops = torch.load("end.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["current"]["processed"] == 2


def test_torch_copies_lists_of_tensors_by_a_private_name() -> None:
    """Saver uses it at each step; where it is gone, a loop does the same."""
    target = [torch.zeros(2)]
    torch._foreach_copy_(target, [torch.ones(2)])
    assert target[0].tolist() == [1, 1]


def test_jsonargparse_reads_files_in_the_encoding_of_the_locale() -> None:
    """No upstream issue yet (jsonargparse 4.53). Then: the second line of install_loader in cli/config.py."""
    from cifar_lit.cli.config import _read_text

    assert "open(self._absolute)" in inspect.getsource(_read_text)


def test_a_logger_of_lightning_keeps_its_version_in_a_private_attribute() -> None:
    """_share_folder sets it: there is no other way once the logger is built."""
    for kind in (CSVLogger, TensorBoardLogger):
        logger = kind("logs")
        logger._version = "version_7"
        assert logger.log_dir == "logs/lightning_logs/version_7"


@pytest.mark.parametrize("start_method", ["popen", "spawn"])
def test_a_strategy_of_lightning_has_a_private_launcher(start_method: Any) -> None:
    """secure_strategy asks for its class: nothing public says whether the processes are copies of this one."""
    strategy = DDPStrategy(start_method=start_method, cluster_environment=LightningEnvironment())
    strategy._configure_launcher()
    assert isinstance(strategy.launcher, _MultiProcessingLauncher) is (start_method == "spawn")
    assert strategy._start_method == start_method
