"""Data sources: each provides checked uint8 images and labels in memory."""

import os
from pathlib import Path
from typing import Literal, Protocol, get_args

from cifar_lit.data.cifar10 import ARCHIVES, CIFAR10, Archive
from cifar_lit.data.decoding import Resize
from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.data.listing import looks_like_images
from cifar_lit.data.split import Split, SplitName
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.data.torchvision_sets import TorchvisionSet
from cifar_lit.errors import UserError, require

SourceName = Literal["cifar10", "cifar100", "images", "synthetic", "torchvision"]

__all__ = ["Source", "SourceName", "Split", "SplitName", "expand_home", "make_source"]


class Source(Protocol):
    """A dataset with a training and a test split, perhaps with a validation split."""

    title: str  # of the dataset, in reports
    has_val: bool

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""

    def prepare(self) -> None:
        """Download and extract what ``load`` reads; called in one process per machine."""

    def load(self, split: SplitName) -> Split:
        """Return a split."""


def make_source(
    name: SourceName,
    *,
    root: Path,
    cache_dir: Path,
    mirror: str | None = None,
    image_size: int = 32,
    resize: Resize = "squash",
    dataset: str | None = None,
) -> Source:
    """Return a source by name; only the names of its classes are read. Arguments as for ``CIFAR10DataModule``."""
    if name in ARCHIVES:
        archive = ARCHIVES[name]
        _check_root(root, archive)
        return CIFAR10(root, mirror=mirror, archive=archive)
    if name == "images":
        return ImageFolder(root, cache_dir=cache_dir, image_size=image_size, resize=resize)
    if name == "torchvision" and dataset is not None:
        return TorchvisionSet(root, name=dataset, cache_dir=cache_dir, image_size=image_size, resize=resize)
    if name == "synthetic":
        return Synthetic()
    raise UserError(f"`source` is {name}: must be one of {', '.join(get_args(SourceName))}")


def _check_root(root: Path, archive: Archive) -> None:
    """Refuse what is no folder for an archive: images of the user, unless it is there, or what lies in its folder."""
    if (root / archive.name).is_file() or (root / archive.folder).is_dir():
        return
    if root.exists() and root.name in (archive.name, archive.folder):
        raise UserError(f"`root` {root} is {archive.title} itself: give its folder, {root.parent}")
    if root.is_file() or looks_like_images(root):
        way_out = f"set `source` to images as well, or give another folder for {archive.title}"
        raise UserError(f"`root` {root} looks like images of your own: {way_out}")


def expand_home(name: str, path: str) -> str:
    """Return a path without ``~``, which no shell expands in a configuration file or in ``--option=~/folder``."""
    expanded = os.path.expanduser(path)  # noqa: PTH111
    require(name, path, not expanded.startswith("~"), "a complete path: there is no such home folder")
    return expanded
