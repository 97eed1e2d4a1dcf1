"""Checkpoint files: the best one chosen, found, saved so that a crash cannot harm them, loaded without running code."""

import contextlib
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class Best(ModelCheckpoint):
    """Keeps ``best.ckpt``, the checkpoint of the epoch with the best accuracy on validation, of several the least loss.

    It is saved at the end of the epoch, as ``last.ckpt`` is, so that a run can go on from either. What is remembered of
    the best so far is good in a folder that was moved, too.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="best",
            monitor="Accuracy/val",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.best_loss = math.inf
        self.best_epoch = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if there has been validation."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tell whether an epoch is the best so far.

        Few images make for few different accuracies, so that the first of equal ones may have hardly learned.

        Args:
            trainer: What trains.
            current: The accuracy of the epoch.

        Returns:
            Whether it has the highest accuracy, or the same as the best and a lower loss.
        """
        loss = float(trainer.callback_metrics.get("Loss/val", math.inf))
        is_better: bool = super().check_monitor_top_k(trainer, current)
        if current is not None and self.best_model_score is not None and bool(current == self.best_model_score):
            is_better = loss < self.best_loss
        if is_better:
            self.best_loss, self.best_epoch = loss, trainer.current_epoch + 1
        return is_better

    def state_dict(self) -> dict[str, Any]:
        """Give what is remembered."""
        return {**super().state_dict(), "best_loss": self.best_loss, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was remembered, under the folder of this run.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        state, then, now = dict(state_dict), str(state_dict["dirpath"]), str(self.dirpath)
        if Path(then, "best.ckpt").is_file():  # it stays the best, also for a run that goes on in another folder
            state["dirpath"] = now
        elif Path(now, "best.ckpt").is_file():
            for name in ("best_model_path", "kth_best_model_path"):
                state[name] = str(state[name]).replace(then, now)
            state["best_k_models"] = {str(k).replace(then, now): v for k, v in state["best_k_models"].items()}
            state["dirpath"] = now
        super().load_state_dict(state)
        self.best_loss, self.best_epoch = state.get("best_loss", math.inf), state.get("best_epoch", 0)


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint that a run is judged by.

    Args:
        path: A checkpoint file, a run's folder, or the folder of an export as safetensors.

    Returns:
        The file: of a folder ``checkpoints/best.ckpt`` or, where there is none, ``checkpoints/last.ckpt``, or
        ``model.safetensors``.

    Raises:
        ValueError: If there is none.
    """
    if path.is_file():
        return path
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors"):
        checkpoint = path / name
        if checkpoint.is_file():
            return checkpoint
    raise ValueError(
        f"{path} is neither a checkpoint nor a run's folder with checkpoints/best.ckpt or last.ckpt, nor an export "
        "with model.safetensors"
    )


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that its name always stands for a whole one: the earlier, until the new one is on the disk.

    It is written beside its final place, flushed to the disk, and renamed.

    Args:
        checkpoint: What to write.
        path: The file.

    Raises:
        OSError: If it cannot be written, as on a full disk; the earlier checkpoint is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(f"{path} cannot be saved ({cause}); an earlier one is as it was") from error
    with contextlib.suppress(OSError):  # the new name is on the disk, too, where a system lets folders be flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, on the CPU, without running anything in it.

    A checkpoint is a zip archive with a CRC-32 of each of its parts; they are compared, which torch does not do.

    Args:
        path: The file.

    Returns:
        What ``save_checkpoint`` was given.

    Raises:
        ValueError: If it is no file, or empty, cut off, damaged, of another kind, or would run code, or if its weights
            are not finite numbers. The message names the file and the reason.
    """
    check_place(path)
    if path.suffix in (".safetensors", ".onnx", ".pt2"):
        raise ValueError(f"{path} is an export, which knows nothing of its data: give the run that it was made from")
    _check_file(path)
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint of this project: it holds more than plain values, which could run code"
        ) from error
    except Exception as error:  # torch.load has no closed list of what it raises for a file of another kind
        raise ValueError(f"{path} is not a checkpoint of this project ({type(error).__name__})") from error
    if isinstance(checkpoint, dict) and checkpoint and all(isinstance(part, Tensor) for part in checkpoint.values()):
        raise ValueError(f"{path} is not a checkpoint of this project: it holds weights alone")
    if not (isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(part), dict) for part in _PARTS)):
        raise ValueError(f"{path} is not a checkpoint of this project: its settings are missing")
    for name, weights in checkpoint["state_dict"].items():
        if isinstance(weights, Tensor) and weights.layout == torch.strided and bool(weights.isnan().any()):
            raise ValueError(f"{path} is of no use: {name} is not a number (NaN), for its training diverged")
    return checkpoint


_PARTS = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")


def check_place(path: Path | str) -> None:
    """Refuse what is not a file that is there.

    Args:
        path: Where a checkpoint should be.

    Raises:
        ValueError: If it is a URL, or if there is no such file.
    """
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        raise ValueError(f"{path} is a URL: download the checkpoint and give the file")
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such checkpoint")


def _check_file(path: Path) -> None:
    """Refuse a file that ``torch.save`` did not write, or whose bytes are not those that it wrote."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"{path} is not a checkpoint of this project: it is empty")
    if start != b"PK\3\4":
        raise ValueError(f"{path} is not a checkpoint of this project: it is another kind of file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            # torch sets no attributes, and takes a part that has that of a folder for one, without a word.
            damaged = damaged or next((part.filename for part in archive.infolist() if part.external_attr), None)
    except Exception as error:  # zipfile raises half a dozen kinds for bytes that are not what they should be
        raise ValueError(f"{path} is damaged or was cut off ({type(error).__name__}: {error})") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not fit")


def _system_error(error: BaseException | None) -> OSError | None:
    """Find what the system said; torch raises an error of its own after it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the functions above.

    Lightning itself writes to ``$TMPDIR`` and moves from there, without a flush, over the earlier checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint as a file; there are no storage options."""
        assert storage_options is None
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint, always as plain values and on the CPU, whatever is asked for."""
        return load_checkpoint(Path(path))


def hyper_parameters(checkpoint: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell what a checkpoint says of its model and its data.

    Args:
        checkpoint: What ``load_checkpoint`` gave.
        path: Its file, for the message.

    Returns:
        The hyper-parameters of the module and of the data module, as plain values.

    Raises:
        ValueError: If they are not those of our module.
    """
    model, data = dict(checkpoint["hyper_parameters"]), dict(checkpoint["datamodule_hyper_parameters"])
    if not {"classes", "net"} <= model.keys() or not {"source", "seed"} <= data.keys():
        raise ValueError(f"{path} is not a checkpoint of this project: its settings are those of another one")
    return model, data
