"""Entries of the record page: files of JSON lines, which are read as data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cifar_lit.cli.arguments import FitCLI
from cifar_lit.commands.trial import Row
from cifar_lit.data.split import Split
from cifar_lit.errors import UserError
from cifar_lit.schema import leaves, read_bytes

NAME = "[a-z0-9][a-z0-9_-]{0,39}"
"""Of an entry, and of its file."""
HEAD = {"date": str, "settings": dict, "data": str, "machine": str, "environment": dict, "versions": dict}
ROW = {
    **{"seed": int, "accuracy": float, "accuracy_without_tta": float, "seconds": float, "train_seconds": float},
    **{"multiplications": int, "epochs": int, "num_train": int, "num_test": int, "gflops": float},
}
"""Names and types of the first line, and of the line of each seed."""


class Images(NamedTuple):
    """A class of entries: its images."""

    title: str
    num_train: int
    num_test: int


OFFICIAL = Images("official", 50_000, 10_000)
KNOWN = {
    "dbfe801d2f0e3fb46059bbfecce3c65cf8c3e3aadf9b084914c0fa1d7e31ccbf": Images("JPEG", 50_000, 5_000),
    "37ec35366110c909bbd578ed430eb8fad33aca5d632e90a29f5b7c3eca6132f1": Images("synthetic", 25_000, 5_000),
}
"""Images by their checksum. Those of the source cifar10 are official: ``fit`` verifies the MD5 of the archive."""


@dataclass(frozen=True)
class Entry:
    """An entry: the first line, with settings, images and machine, and a row for each seed."""

    path: Path
    head: dict[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """Read a file; one that is damaged is a ``UserError`` with the line."""
        try:
            lines = read_bytes(path).splitlines() or [b""]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        head, *rows = (_parse(line, ROW if i else HEAD, f"{path}:{i + 1}") for i, line in enumerate(lines))
        return cls(path, head, rows)

    @property
    def images(self) -> Images | None:
        """The class of the entry; None for images that are not those of CIFAR-10."""
        is_official = get_option(self.head["settings"], "data.source") == "cifar10"
        return KNOWN.get(self.head["data"], OFFICIAL if is_official else None)


def _parse(line: bytes, fields: Mapping[str, type], place: str) -> dict[str, Any]:
    """Parse a line that must have these fields, of these types; numbers are finite and not negative."""
    try:
        part = json.loads(line)
        list(leaves(part))  # not nested too deeply
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is damaged, {error}") from error
    if not isinstance(part, dict) or part.keys() != fields.keys():
        raise UserError(f"{place}: must have the fields {', '.join(fields)}, and no others")
    for name, kind in fields.items():
        value = part[name]
        is_valid = type(value) in (int, kind) and 0 <= value < 1e18 if kind in (int, float) else type(value) is kind
        if not is_valid:
            raise UserError(f"{place}: {name} is {str(value)[:60]}: must be a {kind.__name__}")
    return part


def checksum(train: Split, test: Split) -> str:
    """Return the SHA-256 of decoded images and labels, whatever their order.

    What is hashed are the sorted SHA-256 of all training images, and then those of all test images: each of 3,072 bytes
    (row by row, RGB) and one more for the label, the place of the class in the alphabet.
    """
    total = hashlib.sha256()
    for images, labels in (train, test):
        pairs = zip(images.numpy(), labels.tolist(), strict=True)
        digests = sorted(hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in pairs)
        total.update(b"".join(digests))
    return total.hexdigest()


def settings_of(cli: FitCLI) -> dict[str, Any]:
    """Return all options of a fit, but for those that differ between machines and seeds."""
    settings: dict[str, Any] = yaml.safe_load(cli.dump())
    del settings["seed_everything"], settings["trainer"]["default_root_dir"]
    for name in ("root", "cache_dir", "mirror"):
        del settings["data"][name]
    return settings


def get_option(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part, "missing") if isinstance(settings, dict) else "missing"
    return settings
