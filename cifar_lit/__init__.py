"""Image classifiers on CIFAR-10 with PyTorch Lightning: the tutorial's run, grown up."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_lit.datamodule import CIFAR10DataModule
    from cifar_lit.module import ImageClassifier
    from cifar_lit.run import Run

__all__ = ["CIFAR10DataModule", "ImageClassifier", "Run"]
__version__ = "0.2.0"

_HOMES = {"CIFAR10DataModule": "datamodule", "ImageClassifier": "module", "Run": "run"}


def __getattr__(name: str) -> Any:
    """Import a class of the public API when it is first used: without it, no torch is imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def _check_matplotlib_backend() -> None:
    """Drop an ``MPLBACKEND`` that matplotlib, and so torchmetrics, refuses to be imported with.

    Jupyter and Colab set it for the processes that they start, too, where the backend may not be installed.
    """
    if "matplotlib" not in sys.modules and (name := os.environ.pop("MPLBACKEND", None)):
        import matplotlib as mpl

        try:
            mpl.rcParams["backend"] = name
            os.environ["MPLBACKEND"] = name
        except ValueError:
            pass


_check_matplotlib_backend()
