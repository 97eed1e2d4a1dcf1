"""A run that is trained once for a module of tests, and copied for each of them."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cifar_lit.main import main
from tests.helpers.images import tiny_files, write_files
from tests.helpers.runs import FEW_EPOCHS, RUN

OPTIONS = ["--model.momentum", "0.9", "--model.warmup_epochs", "1", "--data.val_size", "0.2"]


def train_once(folder: Path) -> Path:
    """Train on the tiny images in a folder, and return it; the data lies in ``tiny`` there."""
    write_files(folder / "tiny", tiny_files(8, 2))
    before = Path.cwd()
    os.chdir(folder)
    try:
        data = ["--data.source", "images", "--data.root", "tiny", "--data.cache_dir", "cache"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["fit", *data, *OPTIONS, *FEW_EPOCHS, "--trainer.max_epochs", "1"]) == 0
    finally:
        os.chdir(before)
    return folder


def copy_here(folder: Path) -> None:
    """Copy what ``train_once`` made into the working folder."""
    shutil.copytree(folder, ".", dirs_exist_ok=True)


@contextmanager
def changed(name: str = "last.ckpt") -> Iterator[dict[str, Any]]:
    """Change a checkpoint of the run in the working folder."""
    path = RUN / "checkpoints" / name
    checkpoint = torch.load(path, weights_only=True)
    yield checkpoint
    torch.save(checkpoint, path)
