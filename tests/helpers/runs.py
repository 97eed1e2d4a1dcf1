"""What the tests of the command line share: the folder of their run, and the options of a short training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.data.split import Split, SplitName

Refused = Callable[[list[str]], tuple[int, str]]
"""The fixture ``refused``: runs a command line that must fail, and returns its exit code and its one line."""

RUN = Path("lightning_logs/version_0")
EPOCHS = ["--trainer.max_epochs", "3", "--data.batch_size", "8", "--no_report"]  # of 6 steps on the tiny images
FEW_EPOCHS = ["--trainer.max_epochs", "2", "--data.batch_size", "8", "--no_report"]  # which takes half a second


def read_results(run: Path = RUN) -> dict[str, Any]:
    """Read ``results.json``."""
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def read_metrics(run: Path = RUN) -> dict[str, Any]:
    """Read the metrics from ``results.json``, and the epochs that they belong to."""
    content = read_results(run)
    return {name: value for name, value in content.items() if "/" in name or name in ("epochs", "best_epoch")}


def table_of(printed: str) -> str:
    """Cut the metrics out of what ``fit`` or ``test`` printed."""
    return printed[printed.index("validation") : printed.index("\ndata")]


def callback(name: str, **options: object) -> list[str]:
    """Return the options that add a callback."""
    given = [part for key, value in options.items() for part in (f"--trainer.callbacks.{key}", str(value))]
    return ["--trainer.callbacks+", name, *given]


def copy_run(folder: Path, printed: str, to: Path) -> str:
    """Copy a run and its cache to another folder, as if it had been trained there; return what it printed."""
    for name in ("home", RUN):
        shutil.copytree(folder / name, to / name)
    for path in (to / RUN).iterdir():
        if path.suffix in (".yaml", ".json", ".html"):
            path.write_text(path.read_text(encoding="utf-8").replace(str(folder), str(to)), encoding="utf-8")
    for path in (to / RUN / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        _replace(checkpoint, str(folder), str(to))
        torch.save(checkpoint, path)
    return printed.replace(str(folder), str(to))


def _replace(part: Any, old: str, new: str) -> None:
    """Replace a text wherever it stands in nested dictionaries and lists."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, str):
            part[key] = value.replace(old, new)
        elif isinstance(value, dict | list):
            _replace(value, old, new)


def forbid_test_images(patch: pytest.MonkeyPatch) -> None:
    """Let the test images of a folder not be loaded."""
    load = ImageFolder.load

    def not_test(self: ImageFolder, split: SplitName) -> Split:
        assert split != "test"
        return load(self, split)

    patch.setattr(ImageFolder, "load", not_test)
