"""Which checkpoints are kept and where they are found; saving that survives a crash, loading that runs no code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint


def checkpoint_callbacks(has_val: bool) -> list[ModelCheckpoint]:
    """Keep ``best.ckpt``, where there is validation, and ``last.ckpt``.

    They are two callbacks, because one with ``save_last`` would write the last one only when it finds a new best.

    Args:
        has_val: Whether there is validation.

    Returns:
        The callbacks; the first ``best_model_path`` that is not empty is what a run is judged by.
    """
    last = ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    best = ModelCheckpoint(filename="best", monitor="Accuracy/val", mode="max", enable_version_counter=False)
    return [best, last] if has_val else [last]


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint that a run is judged by.

    Args:
        path: A checkpoint file or a run's folder.

    Returns:
        The file: of a folder ``checkpoints/best.ckpt`` or, where there is none, ``checkpoints/last.ckpt``.

    Raises:
        ValueError: If there is none.
    """
    if path.is_file():
        return path
    for name in ("best", "last"):
        checkpoint = path / "checkpoints" / f"{name}.ckpt"
        if checkpoint.is_file():
            return checkpoint
    raise ValueError(f"{path} is neither a checkpoint nor a run's folder with checkpoints/best.ckpt or last.ckpt")


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
    except (OSError, RuntimeError) as error:  # torch hides the system's error in one of its own
        part.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be saved ({_innermost(error)}); an earlier one is as it was") from error
    if os.name == "posix":  # the new name is on the disk, too
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
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; download a URL first")
    _check_file(path)
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a checkpoint of this project: to load it would run code in it") from error
    except Exception as error:  # torch.load has no closed list of what it raises for a file of another kind
        raise ValueError(f"{path} is not a checkpoint of this project ({type(error).__name__})") from error
    if not (isinstance(checkpoint, dict) and checkpoint.keys() >= _PARTS):
        only = isinstance(checkpoint, dict) and all(isinstance(part, torch.Tensor) for part in checkpoint.values())
        reason = "it holds weights alone" if only else "its settings are missing"
        raise ValueError(f"{path} is not a checkpoint of this project: {reason}")
    for name, weights in checkpoint["state_dict"].items():
        if weights.is_floating_point() and not bool(torch.isfinite(weights).all()):
            raise ValueError(f"{path} is of no use: {name} holds numbers that are not finite; take an earlier one")
    return checkpoint


_PARTS = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters", "pytorch-lightning_version"}


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
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path} is damaged or was cut off ({error}); take an earlier one") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not fit; take an earlier one")


def _innermost(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the functions above.

    Lightning itself writes to ``$TMPDIR`` and moves from there, without a flush, over the earlier checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; there are no storage options."""
        assert storage_options is None
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint, always as plain values and on the CPU, whatever is asked for."""
        return load_checkpoint(Path(path))


def read_hyper_parameters(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a checkpoint says of its model and its data.

    Args:
        path: The checkpoint file.

    Returns:
        The hyper-parameters of the module and of the data module, as plain values.

    Raises:
        ValueError: If it is not one of our checkpoints.
    """
    checkpoint = load_checkpoint(path)
    model, data = dict(checkpoint["hyper_parameters"]), dict(checkpoint["datamodule_hyper_parameters"])
    if not {"classes", "net"} <= model.keys() or not {"source", "seed"} <= data.keys():
        raise ValueError(f"{path} is not a checkpoint of this project: its settings are those of another one")
    return model, data
