"""Which checkpoints are kept, where they are found, and reading them without running anything in them."""

from pathlib import Path
from typing import Any

import torch
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


def read_hyper_parameters(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a checkpoint says of its model and its data.

    Args:
        path: The checkpoint file.

    Returns:
        The hyper-parameters of the module and of the data module, as plain values.

    Raises:
        ValueError: If it is not one of our checkpoints.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        model, data = dict(checkpoint["hyper_parameters"]), dict(checkpoint["datamodule_hyper_parameters"])
        if not {"classes", "net"} <= model.keys() or not {"source", "seed"} <= data.keys():
            raise KeyError("hyper_parameters")
    except Exception as error:  # torch.load has no closed list of what it raises for a file of another kind
        raise ValueError(f"{path} is not a checkpoint of this project ({type(error).__name__})") from error
    return model, data
