"""Each argument of the Trainer: a typical, a boundary and an absurd value, and what comes of it.

``pytest -n 0 -v tests/cli/test_trainer_arguments.py`` prints the table. A value acts (the row says how that is seen) or
is refused (by one line with exit code 2, before the first step). An argument that a release of Lightning adds is
missing here, and makes the first test fail.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelSummary, ProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from cifar_lit.callbacks.steps import StepCurve
from cifar_lit.checkpoint import SafeCheckpointIO
from cifar_lit.main import main
from tests.helpers.options import Workbench, torch_flags_kept
from tests.helpers.runs import FEW_EPOCHS

DDP = "{class_path: DDPStrategy, init_args: {process_group_backend: gloo}}"
SPAWN = "{class_path: DDPStrategy, init_args: {start_method: spawn}}"
DOUBLE = "lightning.pytorch.plugins.precision.DoublePrecision"
STOPPING = "{class_path: EarlyStopping, init_args: {monitor: Loss/val}}"


@dataclass(frozen=True)
class Row:
    """A value, and its outcome: the words of the refusal, or what is seen in the Trainer."""

    value: str
    outcome: str | Callable[[Any], Any]
    seen: str = ""
    more: tuple[str, ...] = ()


def refused(value: str, words: str, *more: str) -> Row:
    return Row(value, words, more=more)


def acts(value: str, seen: str, check: Callable[[Any], Any], *more: str) -> Row:
    return Row(value, check, seen, more)


def sets(name: str, value: str, expected: Any, *more: str) -> Row:
    """The Trainer has an attribute of that name."""

    def check(trainer: Trainer) -> bool:
        found: Any = trainer
        for part in name.split("."):
            found = getattr(found, part)
        return bool(found == expected)

    return acts(value, f"trainer.{name} == {expected!r}", check, *more)


def is_none_of(kind: type) -> Callable[[Any], bool]:
    return lambda trainer: not has(kind)(trainer)


def has(kind: type, **attributes: Any) -> Callable[[Any], bool]:
    return lambda trainer: any(
        isinstance(callback, kind) and all(getattr(callback, name) == value for name, value in attributes.items())
        for callback in trainer.callbacks
    )


def is_csv(trainer: Trainer) -> bool:
    return type(trainer.logger) is CSVLogger


def is_safe(trainer: Trainer) -> bool:
    return type(trainer.strategy).__name__ == "DDPStrategy" and type(trainer.strategy.checkpoint_io) is SafeCheckpointIO


DEVICE = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
"""The one that ``auto`` stands for on this machine."""
HUGE = str(10**30)
NO_USE = "has no use in fit, so leave it out"
TABLE: dict[str, list[Row]] = {
    "accelerator": [
        acts("cpu", "device", lambda trainer: trainer.strategy.root_device.type == "cpu"),
        acts("auto", "device", lambda trainer: trainer.strategy.root_device.type == DEVICE),
        refused("abacus", "You selected an invalid accelerator name"),
    ],
    "strategy": [
        acts("ddp", "DDPStrategy with our checkpoints", is_safe),
        acts(DDP, "DDPStrategy with our checkpoints", is_safe),
        acts("auto", "our checkpoints", lambda trainer: type(trainer.strategy.checkpoint_io) is SafeCheckpointIO),
        refused("ddp_spawn", "--trainer.strategy is ddp_spawn: must be ddp"),
        refused("ddp_notebook", "--trainer.strategy is ddp_notebook: must be ddp"),
        refused(SPAWN, "--trainer.strategy is DDPStrategy with spawn: must be ddp"),
        refused("single_device", "must be one for 2 devices, as ddp", "--trainer.num_nodes=2"),
        refused("teamwork", "You selected an invalid strategy name"),
        refused("", "You selected an invalid strategy name"),
    ],
    "devices": [
        sets("num_devices", "1", 1),
        sets("num_devices", "auto", 1),
        refused("0", "is not a valid input"),
        refused("-5", "should be an int > 0"),
        refused(HUGE, "and this machine has"),
        refused("[0, 0]", "should be an int > 0"),
    ],
    "num_nodes": [
        sets("num_nodes", "2", 2),
        sets("num_nodes", "1", 1),
        refused("0", "must be a positive integer"),
        refused(HUGE, f"--trainer.num_nodes is {HUGE}: must be at most"),
    ],
    "precision": [
        sets("precision", "64-true", "64-true"),
        sets("precision", "32", "32-true"),
        refused("99", "--trainer.precision is 99: must be one of 64, 32, 16, transformer-engine, "),
        refused("foo", "bf16, auto, null (--help lists all options)"),
        refused("transformer-engine", "pip install -U 'transformer_engine>="),
    ],
    "logger": [
        acts("true", "TensorBoardLogger", lambda trainer: type(trainer.logger).__name__ == "TensorBoardLogger"),
        acts("CSVLogger", "CSVLogger", is_csv, "--trainer.logger.save_dir=."),
        sets("loggers", "false", []),
        refused("CSVLogger", "--trainer.logger.save_dir has no default, and must be given"),
        refused("WandbLogger", "--trainer.logger: WandbLogger: Requirement 'wandb"),
        refused("MLFlowLogger", "pip install -U 'mlflow"),
        refused("CSVLoger", "there is no such class; did you mean CSVLogger?"),
        refused("3", "--trainer.logger is 3: there is no such class"),
    ],
    "callbacks": [
        acts("EarlyStopping", "in a list of one", has(EarlyStopping), "--trainer.callbacks.monitor=Loss/val"),
        acts(STOPPING, "in a list of one", has(EarlyStopping)),
        acts(f"[{STOPPING}]", "trainer.callbacks", has(EarlyStopping)),
        acts("[]", "no other", is_none_of(EarlyStopping)),
        refused("EarlyStoping", "there is no such class; did you mean EarlyStopping?"),
        refused("EarlyStopping", "--trainer.callbacks: --monitor has no default, and must be given"),
        refused("EarlyStopping", "monitors val_loss, which nobody logs; did", "--trainer.callbacks.monitor=val_loss"),
        refused("Timer", "Timer: Timer(duration='soon') is not a valid", "--trainer.callbacks.duration=soon"),
        refused("torch.nn.Linear", "does not correspond to a subclass of Callback"),
        refused("", "--trainer.callbacks is '': there is no such class"),
    ],
    "fast_dev_run": [
        sets("fast_dev_run", "true", True),
        sets("fast_dev_run", "2", 2),
        sets("fast_dev_run", "false", False),
        refused("-1", "fast_dev_run=-1 is not a valid configuration"),
        refused("some", "--trainer.fast_dev_run is some: must be a whole number or true or false"),
    ],
    "max_epochs": [
        sets("max_epochs", "3", 3),
        sets("max_epochs", "-1", -1),
        refused("0", "--trainer.max_epochs is 0: must be above 0"),
        refused("-2", "must be a non-negative integer or -1"),
        refused("1.5", "--trainer.max_epochs is 1.5: must be a whole number or null"),
        refused(HUGE, "--trainer.max_epochs is 1000"),
    ],
    "min_epochs": [
        sets("min_epochs", "2", 2),
        sets("min_epochs", "20", 20),
        refused("21", "--trainer.min_epochs is 21: must be at most --trainer.max_epochs, 20"),
        refused("-1", "--trainer.min_epochs is -1: must be at least 0"),
    ],
    "max_steps": [
        sets("max_steps", "5", 5),
        sets("max_steps", "-1", -1),
        refused("0", "--trainer.max_steps is 0: must be above 0"),
        refused("-5", "must be a non-negative integer or -1"),
    ],
    "min_steps": [
        sets("min_steps", "5", 5),
        sets("min_steps", "0", 0),
        refused("9", "--trainer.min_steps is 9: must be at most --trainer.max_steps, 5", "--trainer.max_steps=5"),
        refused("-1", "--trainer.min_steps is -1: must be at least 0"),
    ],
    "max_time": [
        acts("00:00:00:09", "a Timer", has(Timer, _duration=9.0)),
        acts("{minutes: 1}", "a Timer", has(Timer, _duration=60.0)),
        refused("00:00:00:00", "--trainer.max_time is 00:00:00:00: must be above 0"),
        refused("soon", "is not a valid duration"),
        refused("9", "is not a valid duration"),
    ],
    "limit_train_batches": [
        sets("limit_train_batches", "2", 2),
        sets("limit_train_batches", "1.0", 1.0),
        refused("0", "--trainer.limit_train_batches is 0: must be above 0"),
        refused("1.5", "has to be in [0.0, 1.0] or an int"),
        refused("-1", "has to be in [0.0, 1.0] or an int"),
        refused(".nan", "--trainer.limit_train_batches is nan: must be a finite number"),
    ],
    "limit_val_batches": [
        sets("limit_val_batches", "2", 2),
        sets("limit_val_batches", "0", 0),
        refused("1.5", "has to be in [0.0, 1.0] or an int"),
        refused("all", "--trainer.limit_val_batches is all: must be a number or null"),
    ],
    "limit_test_batches": [
        sets("limit_test_batches", "2", 2),
        sets("limit_test_batches", "0.5", 0.5),
        sets("limit_test_batches", "0", 0),
        refused("-1", "has to be in [0.0, 1.0] or an int"),
    ],
    "limit_predict_batches": [
        refused("2", f"--trainer.limit_predict_batches 2 {NO_USE}"),
        sets("limit_predict_batches", "null", 1.0),
        refused("-1", f"--trainer.limit_predict_batches -1 {NO_USE}"),
    ],
    "overfit_batches": [
        refused("2", f"--trainer.overfit_batches 2 {NO_USE}"),
        sets("overfit_batches", "0", 0),
        refused("-1", f"--trainer.overfit_batches -1 {NO_USE}"),
    ],
    "val_check_interval": [
        sets("val_check_interval", "1.0", 1.0),
        sets("val_check_interval", "null", 1.0),
        refused("1", "--trainer.val_check_interval is 1: must be 1.0"),
        refused("0.5", "give --trainer.check_val_every_n_epoch or --checkpoint.every_n_steps"),
        refused("00:00:01:00", "--trainer.val_check_interval is 00:00:01:00: must be 1.0"),
        refused("-1", "--trainer.val_check_interval is -1: must be 1.0"),
    ],
    "check_val_every_n_epoch": [
        sets("check_val_every_n_epoch", "2", 2),
        sets("check_val_every_n_epoch", "1", 1),
        refused("0", "--trainer.check_val_every_n_epoch is 0: must be at least 1"),
        refused("null", "--trainer.check_val_every_n_epoch is None: must be at least 1"),
    ],
    "num_sanity_val_steps": [
        sets("num_sanity_val_steps", "3", 3),
        sets("num_sanity_val_steps", "0", 0),
        sets("num_sanity_val_steps", "-1", float("inf")),
        refused("-7", "--trainer.num_sanity_val_steps is -7: must be at least -1"),
    ],
    "log_every_n_steps": [
        acts("5", "a StepCurve", has(StepCurve, every=5)),
        acts("null", "no StepCurve", is_none_of(StepCurve)),
        acts("0", "no StepCurve", is_none_of(StepCurve)),
        refused("-1", "--trainer.log_every_n_steps is -1: must be at least 0"),
        refused("5", "--trainer.log_every_n_steps needs a --trainer.logger", "--trainer.logger=false"),
    ],
    "enable_checkpointing": [
        acts("false", "no checkpoint (test_fit.py)", lambda _: True),
        acts("true", "checkpoints (test_fit.py)", lambda _: True),
        refused("maybe", "--trainer.enable_checkpointing is maybe: must be true or false or null"),
        refused("false", "and --trainer.callbacks has one that saves", "--trainer.callbacks=ModelCheckpoint"),
    ],
    "enable_progress_bar": [
        acts("false", "no bar", is_none_of(ProgressBar)),
        acts("true", "a bar", has(ProgressBar)),
        refused("maybe", "--trainer.enable_progress_bar is maybe: must be true or false or null"),
    ],
    "enable_model_summary": [
        acts("false", "no summary", is_none_of(ModelSummary)),
        acts("true", "a summary", has(ModelSummary)),
        refused("[1]", "--trainer.enable_model_summary is [1]: must be true or false or null"),
    ],
    "accumulate_grad_batches": [
        sets("accumulate_grad_batches", "2", 2),
        sets("accumulate_grad_batches", "1", 1),
        refused("0", "--trainer.accumulate_grad_batches is 0: must be at least 1"),
        refused(HUGE, "--trainer.accumulate_grad_batches is 1000"),
    ],
    "gradient_clip_val": [
        sets("gradient_clip_val", "0.5", 0.5),
        sets("gradient_clip_val", "0", 0),
        refused("-1", "--trainer.gradient_clip_val is -1: must be at least 0"),
        refused(".nan", "--trainer.gradient_clip_val is nan: must be a finite number"),
    ],
    "gradient_clip_algorithm": [
        sets("gradient_clip_algorithm", "value", "value", "--trainer.gradient_clip_val=1"),
        sets("gradient_clip_algorithm", "norm", "norm", "--trainer.gradient_clip_val=1"),
        refused("value", "--trainer.gradient_clip_algorithm value does nothing without --trainer.gradient_clip_val"),
        refused("cube", "--trainer.gradient_clip_algorithm cube is invalid", "--trainer.gradient_clip_val=1"),
    ],
    "deterministic": [
        acts("true", "torch's algorithms", lambda _: torch.are_deterministic_algorithms_enabled()),
        acts("warn", "torch's warning", lambda _: torch.is_deterministic_algorithms_warn_only_enabled()),
        refused("foo", "--trainer.deterministic is foo: must be one of warn, true, false, null"),
    ],
    "benchmark": [
        acts("true", "cudnn.benchmark", lambda _: torch.backends.cudnn.benchmark),
        acts("false", "not cudnn.benchmark", lambda _: not torch.backends.cudnn.benchmark),
        refused("3", "--trainer.benchmark is 3: must be true or false or null"),
    ],
    "inference_mode": [
        sets("validate_loop.inference_mode", "false", False),
        sets("validate_loop.inference_mode", "true", True),
        refused("null", "--trainer.inference_mode is None: must be true or false"),
    ],
    "use_distributed_sampler": [
        refused("false", f"--trainer.use_distributed_sampler False {NO_USE}"),
        acts("true", "the loader shares each batch (test_loader.py)", lambda _: True),
        refused("3", "--trainer.use_distributed_sampler is 3: must be true or false"),
    ],
    "profiler": [
        acts("simple", "SimpleProfiler", lambda trainer: type(trainer.profiler) is SimpleProfiler),
        acts("SimpleProfiler", "SimpleProfiler", lambda trainer: type(trainer.profiler) is SimpleProfiler),
        sets("profiler.__class__.__name__", "null", "PassThroughProfiler"),
        refused("fast", "it can only be one of ['simple', 'advanced', 'pytorch', 'xla']"),
    ],
    "detect_anomaly": [
        sets("_detect_anomaly", "true", True),
        sets("_detect_anomaly", "false", False),
        refused("3", "--trainer.detect_anomaly is 3: must be true or false"),
    ],
    "barebones": [
        refused("true", f"--trainer.barebones True {NO_USE}"),
        sets("barebones", "false", False),
        refused("3", "--trainer.barebones is 3: must be true or false"),
    ],
    "plugins": [
        sets("precision", DOUBLE, "64-true"),
        acts("[]", "our checkpoints", lambda trainer: type(trainer.strategy.checkpoint_io) is SafeCheckpointIO),
        refused("AsyncCheckpointIO", "--trainer.plugins has AsyncCheckpointIO: checkpoints are written atomically"),
        refused("lightning.pytorch.plugins.TorchCheckpointIO", "--trainer.plugins has TorchCheckpointIO"),
        refused("4", "--trainer.plugins is 4: there is no such class"),
    ],
    "sync_batchnorm": [
        acts("true", "a layer sync", lambda trainer: trainer.strategy._layer_sync, "--trainer.strategy=ddp"),
        acts("false", "none", lambda trainer: not trainer.strategy._layer_sync, "--trainer.strategy=ddp"),
        refused("3", "--trainer.sync_batchnorm is 3: must be true or false"),
    ],
    "reload_dataloaders_every_n_epochs": [
        refused("1", f"--trainer.reload_dataloaders_every_n_epochs 1 {NO_USE}"),
        sets("reload_dataloaders_every_n_epochs", "0", 0),
        refused("-1", f"--trainer.reload_dataloaders_every_n_epochs -1 {NO_USE}"),
    ],
    "default_root_dir": [
        acts("runs", "trainer.default_root_dir", lambda trainer: trainer.default_root_dir.endswith("runs")),
        acts("~/runs", "the home folder", lambda trainer: trainer.default_root_dir == f"{Path.home()}/runs"),
        refused("", "--trainer.default_root_dir is '': must be the name of a file or folder"),
        refused(__file__, f"must be a folder, and {__file__} is a file"),
        refused("s3://bucket/runs", "--trainer.default_root_dir is s3://bucket/runs: must be a folder"),
    ],
    "enable_autolog_hparams": [
        sets("enable_autolog_hparams", "false", False),
        sets("enable_autolog_hparams", "true", True),
        refused("3", "--trainer.enable_autolog_hparams is 3: must be true or false"),
    ],
    "model_registry": [
        refused("mine", f"--trainer.model_registry mine {NO_USE}"),
        sets("_model_registry", "null", None),
        refused("[1]", "--trainer.model_registry"),
    ],
}


def cases(*, acting_only: bool = False) -> list[Any]:
    return [
        pytest.param(name, row, id=f"{name} {row.value[:40]} -> {_outcome(row)}")
        for name, rows in TABLE.items()
        for row in rows
        if not acting_only or callable(row.outcome)
    ]


def _outcome(row: Row) -> str:
    return f"refused: {row.outcome[:60]}" if isinstance(row.outcome, str) else f"acts: {row.seen}"


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("workbench"))
    try:
        return Workbench()
    finally:
        os.chdir(before)


def test_every_argument_of_the_trainer_has_rows() -> None:
    assert TABLE.keys() == inspect.signature(Trainer).parameters.keys()
    assert all(len(rows) >= 3 for rows in TABLE.values())
    assert all(any(isinstance(row.outcome, str) for row in rows) for rows in TABLE.values())


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16", "ignore:.*GPU available but not used")
@pytest.mark.parametrize(("name", "row"), cases())
def test_a_value_acts_or_is_refused(name: str, row: Row, workbench: Workbench) -> None:
    args = [f"--trainer.{name}={row.value}", *row.more]
    with torch_flags_kept():
        if isinstance(row.outcome, str):
            assert row.outcome in workbench.refusal(args)
        else:
            assert row.outcome(workbench.build(*args))
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
@pytest.mark.parametrize(("name", "row"), cases(acting_only=True))
def test_a_value_that_acts_can_be_trained_with(name: str, row: Row, tiny_args: list[str]) -> None:
    if (name, row.value) in (("num_nodes", "2"), ("max_epochs", "-1"), ("max_epochs", "3"), ("min_epochs", "20")):
        pytest.skip("waits for another machine, or never ends, or is in the other rows")
    with torch_flags_kept():
        assert main(["fit", *tiny_args, *FEW_EPOCHS, f"--trainer.{name}={row.value}", *row.more]) == 0
