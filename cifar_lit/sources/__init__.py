"""Where the images come from: each source gives checked uint8 images and labels in memory."""

from pathlib import Path
from typing import Literal

from cifar_lit.sources.cifar10 import Cifar10
from cifar_lit.sources.images import Images
from cifar_lit.sources.split import Source, Split, SplitName
from cifar_lit.sources.synthetic import Synthetic

SourceName = Literal["cifar10", "images", "synthetic"]

__all__ = ["Source", "SourceName", "Split", "SplitName", "make_source"]


def make_source(name: SourceName, *, root: Path, cache_dir: Path, mirror: str | None = None) -> Source:
    """Make a source from its name.

    Args:
        name: ``cifar10``, ``images`` or ``synthetic``.
        root: For ``cifar10`` the folder of the archive; for ``images`` the folder or archive itself.
        cache_dir: Where ``images`` keeps what it decoded.
        mirror: For ``cifar10``, a URL to try first.

    Returns:
        The source, of which nothing but the names of its classes has been read.

    Raises:
        ValueError: If ``root`` cannot be a dataset.
    """
    if name == "cifar10":
        if (root.expanduser() / "train").is_dir() or root.expanduser().is_file():
            raise ValueError(f"--data.root is {root}, which looks like pictures: give --data.source images, too")
        return Cifar10(root.expanduser(), mirror=mirror)
    if name == "images":
        return Images(root.expanduser(), cache_dir=cache_dir.expanduser())
    return Synthetic()
