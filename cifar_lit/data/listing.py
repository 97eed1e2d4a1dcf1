"""Which files are images, and of which split and class; what is passed over is counted."""

import contextlib
import functools
import itertools
import os
import sys
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.data.archives import members
from cifar_lit.data.decoding import FORMATS, is_image, is_named_image
from cifar_lit.data.unpacking import MAX_BYTES
from cifar_lit.errors import UserError
from cifar_lit.files import printable

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The names of a split's folder, in any case, and the split."""
Listing = dict[str, dict[str, list[str]]]  # split -> class -> the names of its files, all sorted
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz")
LAYOUT = "must be a folder or archive with train/<class>/* and test/<class>/*"


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


def list_images(root: Path) -> Found:
    """List the images in a folder or archive, by one rule for training and prediction.

    An image is what has the name of one, and what has another name and the content of an image.
    """
    found = Found(root)
    passed_over = defaultdict(list)
    try:
        for member in members(root):
            is_folder = member.name.endswith("/")
            if any(part.startswith((".", "__")) for part in PurePosixPath(member.name).parts):
                if not is_folder:
                    passed_over["hidden"].append(member.name)
            elif is_folder:
                found.names.append(member.name)
            elif member.open is None:
                passed_over["links to nothing or in a circle, pipes"].append(member.name)
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


def find_dataset(root: Path) -> tuple[Listing, str]:
    """Return the one dataset below a root, in which no split or class is missing or empty, and what is passed over."""
    found = list_images(root)
    if found.damage:
        raise found.damage
    datasets = _group(found.names)
    if len(datasets) != 1:
        problem = "contains more than one dataset" if datasets else "contains no dataset"
        raise UserError(f"`root` {root} {problem}: {LAYOUT}")
    (folders,) = datasets.values()
    listing: Listing = {}
    for folder, classes in folders.items():
        split = SPLITS[folder.lower()]
        if split in listing:
            both = " and ".join(sorted(f"{name}/" for name in folders if SPLITS[name.lower()] == split))
            raise UserError(f"`root` {root} has {both}, which are names of one split: keep one of them")
        listing[split] = dict(sorted(classes.items()))
    _check(listing, root)
    used = {name for classes in listing.values() for names in classes.values() for name in names}
    if outside := [name for name in found.images if name not in used]:
        found.passed_over["pictures outside the folders of the classes"] = outside
    return listing, found.describe()


def _group(names: Iterable[str]) -> dict[tuple[str, ...], Listing]:
    """Group images by the folder that has those of the splits in it, by split (as it is written) and by class."""
    groups: dict[tuple[str, ...], Listing] = defaultdict(dict)
    for name in sorted(set(names)):  # an archive may contain a file twice: the later one counts
        is_folder = name.endswith("/")
        folders = PurePosixPath(name).parts[: None if is_folder else -1]
        for depth, folder in enumerate(folders[:-1]):
            if folder.lower() in SPLITS:
                class_name = unicodedata.normalize("NFC", folders[depth + 1])  # a Mac's archives have another form
                files = groups[folders[:depth]].setdefault(folder, {}).setdefault(class_name, [])
                if not is_folder:
                    files.append(name)
    # Classes may be named train or test, and so may a folder around the dataset.
    complete = [base for base, splits in groups.items() if {SPLITS[s.lower()] for s in splits} >= {"train", "test"}]
    outermost = [base for base in complete if not any(_is_below(base, other, groups) for other in complete)]

    def is_part(base: tuple[str, ...]) -> bool:
        is_around = all(any(one[: len(base) + 1] == (*base, s) for one in outermost) for s in groups[base])
        return is_around or any(_is_below(base, one, groups) for one in outermost)

    return {base: splits for base, splits in groups.items() if not is_part(base)}


def _is_below(base: tuple[str, ...], other: tuple[str, ...], groups: dict[tuple[str, ...], Listing]) -> bool:
    """Return whether a folder lies in a split of another."""
    return len(base) > len(other) and base[: len(other)] == other and base[len(other)] in groups[other]


def _check(listing: Listing, root: Path) -> None:
    for split in ("train", "test", *listing):  # train first: the others are compared with it
        if split not in listing:
            raise UserError(f"`root` {root} has no {split}/<class>/* folders")
        for class_name, names in listing[split].items():
            if not names:
                raise UserError(f"`root` {root}: {split}/{class_name} contains no image ({', '.join(FORMATS)})")
            if not class_name.isprintable():
                raise UserError(f"`root` {root}: the name of the class {class_name!a} cannot be shown; rename it")
        if unmatched := ", ".join(sorted(listing[split].keys() ^ listing["train"].keys())):
            raise UserError(f"`root` {root}: not in both train and {split}: the class {unmatched}")
    if len(listing["train"]) < 2:
        raise UserError(f"`root` {root} has only one class: a classifier needs at least two")


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
    """Return whether a folder, at a first look, is one of images: these or a split in it, or in each of its folders."""

    def holds(folder: str | Path) -> bool:
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower() in SPLITS if entry.is_dir() else is_named_image(entry.name)
                for entry in itertools.islice(entries, 1000)
            )

    with contextlib.suppress(OSError):
        with os.scandir(root) as entries:
            folders = [e.path for e in entries if e.is_dir() and not e.name.startswith(".")]
        return holds(root) or (0 < len(folders) < 1000 and all(map(holds, folders)))
    return False


@functools.cache
def say(text: str) -> None:
    """Print a line to standard error, once."""
    rank_zero_only(print)(printable(text), file=sys.stderr)
