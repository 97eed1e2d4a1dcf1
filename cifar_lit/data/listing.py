"""Which files are images; what is passed over is counted."""

import contextlib
import functools
import itertools
import os
import sys
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.data.archives import members
from cifar_lit.data.decoding import is_image, is_named_image
from cifar_lit.data.unpacking import MAX_BYTES
from cifar_lit.errors import UserError
from cifar_lit.files import printable

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The names of a split's folder, in any case, and the split."""
RUNS = "lightning_logs"
"""The folder of the runs, which may lie among the images."""
OF_WINDOWS = {"thumbs.db", "desktop.ini"}
"""Files that Windows puts into folders of pictures."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")


@dataclass
class Found:
    """The images in a folder or archive; ``names`` also has those of the folders, with a slash at the end."""

    root: Path
    names: list[str] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    """Why files are passed over, and which."""
    damage: UserError | None = None
    """Why there may be more images, after which there were some."""

    @property
    def images(self) -> list[str]:
        """The names of the images, sorted."""
        return sorted({name for name in self.names if not name.endswith("/")})

    def describe(self) -> str:
        """Return one line on what is passed over; empty if nothing is."""
        reasons = []
        for reason, names in self.passed_over.items():
            shown = names[:3] + ["..."] * (len(names) > 3)
            reasons.append(f"{len(names):,} {reason} ({', '.join(shown)})")
        return f"passed over in {self.root}: {'; '.join(reasons)}" if reasons else ""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's images by its name: hidden, of the system, or of runs."""
    parts = PurePosixPath(name).parts
    is_odd = any(part.startswith((".", "__")) or part == RUNS for part in parts)
    return is_odd or not OF_WINDOWS.isdisjoint(part.lower() for part in parts[-1:])


def list_images(root: Path) -> Found:
    """List the images in a folder or archive, by one rule for training and prediction.

    An image is what has the name of one, and what has another name and the content of an image. Runs are not counted.
    """
    found = Found(root)
    links = "links to nothing or in a circle, pipes" if root.is_dir() else "links in an archive (unpack it)"
    passed_over = defaultdict(list)
    try:
        for member in members(root):
            is_folder = member.name.endswith("/")
            if is_hidden(member.name):
                if not is_folder and RUNS not in PurePosixPath(member.name).parts:
                    passed_over["hidden"].append(member.name)
            elif is_folder:
                found.names.append(member.name)
            elif member.open is None:
                passed_over[links].append(member.name)
            elif is_named_image(member.name) or (member.size <= MAX_BYTES and is_image(member.open)):
                found.names.append(member.name)
            else:
                passed_over["not pictures"].append(member.name)
                found.names.append(f"{PurePosixPath(member.name).parent}/")
    except UserError as error:
        if root.is_dir() or not found.images:
            raise
        found.damage = error
    found.passed_over = dict(passed_over)
    return found


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar or zip archive: by its name or content, unless it has the name of an image."""
    if not path.is_file() or is_named_image(path.name):
        return False
    if path.name.lower().endswith(ARCHIVES) or zipfile.is_zipfile(path):
        return True
    try:
        return next(members(path), None) is not None
    except UserError:
        return False


def looks_like_images(root: Path) -> bool:
    """Return whether a folder, at a first look, is one of images: these or a split in it, or in each of its folders.

    A folder beside its archive, as .tgz, was unpacked there by torchvision: others are downloaded to the same place.
    """

    def holds(folder: str | Path) -> bool:
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower() in SPLITS if entry.is_dir() else is_named_image(entry.name)
                for entry in itertools.islice(entries, 1000)
            )

    with contextlib.suppress(OSError):
        with os.scandir(root) as entries:
            folders = [e.path for e in entries if e.is_dir() and not is_hidden(e.name)]
        is_unpacked = any(os.path.isfile(f"{folder}.tgz") for folder in folders[:1000])  # noqa: PTH113
        return holds(root) or (0 < len(folders) < 1000 and not is_unpacked and all(map(holds, folders)))
    return False


@functools.cache
def say(text: str) -> None:
    """Print a line to standard error, once."""
    rank_zero_only(print)(printable(text), file=sys.stderr)
