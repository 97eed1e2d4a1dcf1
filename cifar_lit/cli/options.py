"""Options that Lightning would ignore, misunderstand or check late: refused here, by name, before the first step."""

import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.model_helpers import is_overridden

from cifar_lit.callbacks.best import MONITORED
from cifar_lit.checkpoint import SafeCheckpointIO
from cifar_lit.cli.words import FINDER
from cifar_lit.data.image_folder import lies_among_images
from cifar_lit.data.options import check_mirror
from cifar_lit.errors import UserError, require, suggest
from cifar_lit.finetuning import FEWER
from cifar_lit.schema import leaves

WITHHELD = {
    "barebones": "it switches off what a run is made of; switch off what you name: `logger`, `enable_checkpointing`",
    "limit_predict_batches": "fit predicts nothing; cifar-lit predict takes the files that you name",
    "model_registry": "it belongs to Lightning's cloud; cifar-lit export writes the model",
    "overfit_batches": "each epoch has another order; give `limit_train_batches`, or a `root` with a few images",
    "reload_dataloaders_every_n_epochs": "the images stay in memory, and there is nothing to load again",
    "use_distributed_sampler": "the processes always share the images of each batch",
}
"""Arguments of the Trainer that can do nothing here. They keep their defaults, and are not in ``--help``."""

REFUSED: dict[type[Callback], str] = {
    LearningRateFinder: f"would train with another `lr` than config.yaml says, and {FINDER}",
    BatchSizeFinder: "would train with another `batch_size` than config.yaml says: give a `batch_size`",
    OnExceptionCheckpoint: "would start from what it saved in another run: leave it out, last.ckpt is saved on an "
    "exception, too",
    StochasticWeightAveraging: "trains a further epoch that is neither validated nor saved: use EMAWeightAveraging, "
    "whose average is",
}
"""Callbacks of Lightning that train otherwise than is written down or saved."""

METRICS = {"train": ("Loss/train", "Accuracy/train", "lr"), "val": MONITORED}
"""What the module logs at the end of an epoch, and so what a callback can monitor."""

PATHS = ("root", "mirror", "ckpt_path", "weights")
FOLDERS = ("cache_dir", "default_root_dir", "dirpath", "save_dir")

LARGEST = 2**53
"""Of a whole number: larger ones overflow, late, in torch's int64 or in a float."""


class FitTrainer(Trainer):
    """The Trainer, whose options have one more precision: auto, which is settled before it is built."""

    def __init__(self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **options: Any) -> None:
        super().__init__(precision=precision, **options)  # type: ignore[arg-type]


def check_config(config: Namespace) -> None:
    """Check the values of all options, and those that the Trainer takes without a word."""
    for name, value in leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"`{name}` is {value}: must be a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"`{name}` is {value}: must be at most {LARGEST}")
        if name in (*PATHS, *FOLDERS) and isinstance(value, str):
            require(name, repr(value), bool(value.strip()) and "\0" not in value, "the name of a file or folder")
        if name in FOLDERS and value is not None:
            _check_folder(name, Path(value))
            if config["data"]["source"] == "images" and lies_among_images(
                Path(value), root := Path(config["data"]["root"])
            ):
                raise UserError(f"`{name}` {value} lies among the images of `root` {root}: give another folder")
    check_mirror(config["data"]["mirror"], config["data"]["source"])
    trainer = config["trainer"]
    for name, reason in WITHHELD.items():
        if trainer[name] != inspect.signature(Trainer).parameters[name].default:
            raise UserError(f"`{name}` {trainer[name]} has no use in fit, so leave it out: {reason}")
    check_devices(trainer["devices"], trainer["accelerator"])
    _check_trainer(trainer)
    frozen, most = config["model"]["freeze_epochs"], trainer["max_epochs"]
    is_all = frozen and most is not None and 0 <= most <= frozen
    require("freeze_epochs", frozen, not is_all or trainer["fast_dev_run"], FEWER)  # before others are trained


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    at_least = {
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 0,
        "log_every_n_steps": 0,
        "num_sanity_val_steps": -1,
    }
    for name, least in {**at_least, "min_epochs": 0, "min_steps": 0, "check_val_every_n_epoch": 1}.items():
        require(name, trainer[name], trainer[name] is None or trainer[name] >= least, f"at least {least}")
    every, interval = trainer["check_val_every_n_epoch"], trainer["val_check_interval"]
    require("check_val_every_n_epoch", every, every is not None, "at least 1")
    # 1 is not 1.0: Lightning validates after each batch. The checkpoints are chosen at the end of an epoch.
    expected = "1.0, the end of an epoch, where the best is chosen; give `check_val_every_n_epoch` or `every_n_steps`"
    require("val_check_interval", interval, interval is None or (interval == 1.0 and type(interval) is float), expected)
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        require(name, 0, trainer[name] != 0, "above 0, or nothing is trained")
    if trainer["log_every_n_steps"] and trainer["logger"] in (False, []):
        raise UserError("`log_every_n_steps` needs a `logger`: leave out one of the two")
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        require(
            f"min_{unit}", least, None in (least, most) or most < 0 or least <= most, f"at most `max_{unit}`, {most}"
        )
    algorithm = trainer["gradient_clip_algorithm"]
    if algorithm is not None and not trainer["gradient_clip_val"]:
        raise UserError(f"`gradient_clip_algorithm` {algorithm} does nothing without `gradient_clip_val`: give both")


def check_timers(callbacks: Iterable[Callback], max_time: Any) -> None:
    for timer in (callback for callback in callbacks if isinstance(callback, Timer)):
        seconds = timer.time_remaining()
        require("max_time", max_time or seconds, seconds is None or seconds > 0, "above 0, or nothing is trained")


def check_callbacks(callbacks: Sequence[Callback], *, has_val: bool, is_new: bool = True) -> None:
    """Refuse ``REFUSED``, and what Lightning finds after an epoch: a metric that nobody logs (the user's may log)."""
    names = [type(callback).__name__ for callback in callbacks]
    for callback, name in zip(callbacks, names, strict=True):
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind) and (is_new or kind is not OnExceptionCheckpoint):
                raise UserError(f"`callbacks`: {name} {reason}")
        if is_new and isinstance(callback, EMAWeightAveraging):
            _check_average(callback)
        num_equal = sum(callback.state_key == other.state_key for other in callbacks)
        if num_equal > 1 and is_overridden("state_dict", callback):
            raise UserError(
                f"`callbacks` has {name} twice, perhaps once from the recipe: give {name} without + to have it alone"
            )
    known = [*METRICS["train"], *(METRICS["val"] if has_val else ())]
    if not all(type(callback).__module__.startswith(("lightning.", "cifar_lit.")) for callback in callbacks):
        return
    for callback, name in zip(callbacks, names, strict=True):
        monitor = getattr(callback, "monitor", None)
        is_rate = str(monitor).startswith("lr-") and any(isinstance(other, LearningRateMonitor) for other in callbacks)
        if monitor is not None and monitor not in known and not is_rate:
            same = [metric for metric in known if _words(metric) == _words(monitor)]  # val_loss
            raise UserError(
                f"`callbacks`: {name} monitors {monitor}, which nobody logs{suggest((same or [monitor])[0], known)}; "
                f"there are {', '.join(known)}"
            )


def _check_average(callback: EMAWeightAveraging) -> None:
    """Refuse an average that is not the weights' from the first step on: until then the initial weights are saved."""
    if step := callback.update_starting_at_step:
        raise UserError(
            f"`callbacks`: EMAWeightAveraging has update_starting_at_step {step}, and until then the initial weights "
            "would be validated and saved: leave it out"
        )
    every = callback.update_every_n_steps
    require("callbacks", f"EMAWeightAveraging with update_every_n_steps {every}", every >= 1, "at least 1")


def _words(metric: str) -> list[str]:
    """Return the first letters of a metric's words: val_loss and Loss/val are the same, as are acc and accuracy."""
    return sorted(word[:3].lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", metric))


def check_plugins(plugins: Iterable[Any]) -> None:
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO):
            raise UserError(
                f"`plugins` has {type(plugin).__name__}: checkpoints are written atomically and read without running "
                "code, by this project's own; leave it out"
            )


def secure_strategy(strategy: Strategy, given: Any) -> None:
    """Refuse a strategy whose processes are copies of this one, and give any other our checkpoints."""
    launched = isinstance(strategy.launcher, _MultiProcessingLauncher)
    name = given if isinstance(given, str) else f"{type(given).__name__} with {getattr(given, '_start_method', 'fork')}"
    require("strategy", name, not launched, "ddp, which starts its own processes")
    strategy.checkpoint_io = SafeCheckpointIO()


def check_devices(devices: Any, accelerator: Any) -> None:
    """Refuse more processes than the CPU has cores: they would take the machine down."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    num_cores = os.cpu_count() or 1
    if on_cpu and str(devices).isdecimal() and int(devices) > num_cores:
        raise UserError(f"`devices` is {devices}, and this machine has {num_cores} cores: give fewer")


def check_devices_used(strategy: Strategy, devices: Any, num_nodes: int) -> None:
    num = (int(devices) if str(devices).isdecimal() else 1) * num_nodes
    is_single = isinstance(strategy, SingleDeviceStrategy)
    require("strategy", type(strategy).__name__, num == 1 or not is_single, f"one for {num} devices, as ddp")


def _check_folder(name: str, path: Path) -> None:
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    require(name, path, existing.is_dir(), f"a folder, and {existing} is a file")
