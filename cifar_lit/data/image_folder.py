"""Images of the user, in a folder or archive: ``train/<class>/*`` and ``test/<class>/*``, decoded once and cached."""

import functools
import hashlib
import io
import itertools
import json
import os
import pickle
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from cifar_lit.data.archives import MAX_BYTES, list_files, read_files, reading, walk, writing
from cifar_lit.data.decoding import read_image
from cifar_lit.data.split import Split, SplitName
from cifar_lit.errors import UserError
from cifar_lit.files import write_atomic

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
FORMAT = 3  # of decoding and cache: raise it when one of them changes, so that no older cache is used
Listing = dict[str, dict[str, list[str]]]  # split -> class -> the names of its files, all sorted


class ImageFolder:
    """Images in the folders of their classes, in a folder or in an archive that is read without unpacking it.

    Below the root, or below a single folder in it, there are ``train/<class>/*``, ``test/<class>/*`` and optionally
    ``val/<class>/*``: JPEG, PNG, WebP or BMP files of any size. Decoded images are kept in ``cache_dir``, one entry per
    root, until the root changes: the names, sizes or times of the files of a folder, the content of an archive.
    """

    def __init__(self, root: Path, *, cache_dir: Path) -> None:
        if not root.exists():
            raise UserError(f"`root` {root}: no such folder or archive")
        self.root = root
        self.title = f"images from {root}"
        self._fingerprint = _fingerprint(root)
        self._cache = cache_dir / hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
        index = self._read_cached("index.json")
        if index is None:
            classes = {split: sorted(names) for split, names in self._listing.items()}
            index = {"fingerprint": self._fingerprint, "classes": classes}
            with writing(self._cache, f"`cache_dir` {cache_dir}"):
                write_atomic(self._cache / "index.json", json.dumps(index))
        self.classes: list[str] = index["classes"]["train"]
        self.has_val = "val" in index["classes"]

    @functools.cached_property
    def _listing(self) -> Listing:
        return _check(_find_datasets(list_files(self.root)), self.root)

    def prepare(self) -> None:
        """Do nothing: ``load`` decodes the split that it is asked for, if the cache does not have it."""

    def load(self, split: SplitName) -> Split:
        """Return a split, class by class, from the cache if it is there; one process decodes, others wait for it."""
        entry = self._read_cached(f"{split}.pt")  # without a lock: a shared cache may be read-only
        if entry is None:
            with writing(self._cache, f"`cache_dir` {self._cache.parent}"):
                entry = self._read_cached(f"{split}.pt") or self._decode(split)
        return Split(entry["images"], entry["labels"])

    def _decode(self, split: SplitName) -> dict[str, Any]:
        """Decode a split, and return its entry in the cache."""
        names = [self._listing[split][class_name] for class_name in self.classes]
        position = {name: i for i, name in enumerate(itertools.chain(*names))}
        images = np.empty((len(position), 32, 32, 3), np.uint8)

        def decode(group: list[tuple[str, bytes]]) -> None:
            for name, data in group:
                try:
                    images[position[name]] = read_image(io.BytesIO(data))
                except UserError as error:
                    raise UserError(f"`root` {self.root}: {name} {error}; repair or remove it") from error

        num_cores = os.cpu_count() or 1
        with ThreadPoolExecutor(num_cores) as pool, tqdm(total=len(position), desc=f"Decoding {split}") as bar:
            # One group per core, because handing over an image costs as much as decoding it.
            for chunk in _chunks(read_files(self.root, position)):
                list(pool.map(decode, (chunk[i::num_cores] for i in range(num_cores))))
                bar.update(len(chunk))
        labels = torch.tensor([label for label, of_class in enumerate(names) for _ in of_class])
        entry = {"fingerprint": self._fingerprint, "images": torch.from_numpy(images), "labels": labels}
        for left_over in self._cache.glob(f".{split}.pt.*"):  # of a process that was killed: this one has the lock
            left_over.unlink(missing_ok=True)
        write_atomic(self._cache / f"{split}.pt", functools.partial(torch.save, entry))
        return entry

    def _read_cached(self, name: str) -> Any:
        """Return an entry of the cache; None if it is missing, damaged or outdated."""
        path = self._cache / name
        try:
            is_json = path.suffix == ".json"
            entry = json.loads(path.read_bytes()) if is_json else torch.load(path, weights_only=True, mmap=True)
            return entry if entry["fingerprint"] == self._fingerprint else None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            return None


def _find_datasets(names: list[str]) -> list[Listing]:
    """Group image files by the folder that contains ``train`` and ``test``; hidden files and folders are ignored."""
    found: dict[tuple[str, ...], Listing] = defaultdict(dict)
    for name in sorted(set(names)):  # an archive may contain a file twice: the later one counts
        path = PurePosixPath(name)
        folders = path.parts if name.endswith("/") else path.parts[:-1]
        if any(part.startswith((".", "__")) for part in path.parts):
            continue
        if len(folders) >= 2 and folders[-2] in get_args(SplitName):
            files = found[folders[:-2]].setdefault(folders[-2], {}).setdefault(folders[-1], [])
            if not name.endswith("/") and path.suffix.lower() in SUFFIXES:
                files.append(name)
    return list(found.values())


def _check(found: list[Listing], root: Path) -> Listing:
    """Return the one dataset below a root, in which no split or class is missing or empty."""
    if len(found) != 1:
        problem = "contains more than one dataset" if found else "contains no dataset"
        raise UserError(f"`root` {root} {problem}: must be a folder or archive with train/<class>/* and test/<class>/*")
    (listing,) = found
    for split in ("train", "test", *listing):  # train first: the others are compared with it
        if split not in listing:
            raise UserError(f"`root` {root} has no {split}/<class>/* folders")
        for class_name, names in listing[split].items():
            if not names:
                kinds = ", ".join(sorted(SUFFIXES))
                raise UserError(f"`root` {root}: {split}/{class_name} contains no image ({kinds})")
        if unmatched := ", ".join(sorted(listing[split].keys() ^ listing["train"].keys())):
            raise UserError(f"`root` {root}: not in both train and {split}: the class {unmatched}")
    if len(listing["train"]) < 2:
        raise UserError(f"`root` {root} has only one class: a classifier needs at least two")
    return listing


def _fingerprint(root: Path) -> str:
    digest = hashlib.blake2b(f"{FORMAT}\n".encode(), digest_size=16)
    with reading(root):
        if root.is_file():
            with root.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        else:
            for path in filter(Path.exists, walk(root)):  # a link may lead nowhere
                stat = path.stat()
                digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _chunks(contents: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Gather files into lists, so that only a part of a large archive is in memory at once."""
    chunk: dict[str, bytes] = {}  # in an archive, a name may occur twice: the later file counts
    num_bytes = 0
    for name, data in contents:
        chunk[name] = data
        num_bytes += len(data)
        if len(chunk) >= 1024 or num_bytes >= MAX_BYTES:
            yield list(chunk.items())
            chunk, num_bytes = {}, 0
    yield list(chunk.items())
