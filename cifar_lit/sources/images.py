"""Pictures in a folder or an archive, ``train/<class>/*`` and ``test/<class>/*``, decoded once and cached."""

import functools
import hashlib
import io
import json
import os
import pickle
import tarfile
import uuid
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from cifar_lit.sources.picture import read_picture
from cifar_lit.sources.split import Split, SplitName

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MAX_BYTES = 100_000_000
"""The largest file in an archive that is taken for a picture."""
FORMAT = 2
"""To be raised when pictures are decoded in another way, so that what was cached before is not used."""
Listing = dict[str, dict[str, list[str]]]
"""Split -> class -> the names of its pictures, both sorted."""


class Images:
    """A user's own pictures, from a folder or an archive that is read without unpacking it.

    Below the root, or below the one folder in it, lie ``train/<class>/*``, ``test/<class>/*`` and, where wanted,
    ``val/<class>/*``: JPEG, PNG, WebP or BMP, of any size. The decoded images are kept in ``cache_dir``, one entry
    per root; an entry is made anew when the root has changed (for a folder: a name, size or time of change; for an
    archive: its content).

    Args:
        root: A folder, or a ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip`` file.
        cache_dir: Where the decoded images are kept.

    Raises:
        ValueError: If there is nothing at ``root``, a split or a class is missing or empty.
    """

    def __init__(self, root: Path, *, cache_dir: Path) -> None:
        if not root.exists():
            raise ValueError(f"--data.root {root}: there is no such folder or archive")
        self.root = root
        self.title = f"images from {root}"
        self._fingerprint = _fingerprint(root)
        self._cache = cache_dir / hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
        classes = self._read_index()
        if classes is None:
            classes = {split: sorted(pictures) for split, pictures in self._listing.items()}
            with self._writing("index.json") as path:
                path.write_text(json.dumps({"fingerprint": self._fingerprint, "classes": classes}))
        self.classes: list[str] = classes["train"]
        self.has_val = "val" in classes

    @functools.cached_property
    def _listing(self) -> Listing:
        return check_listing(list_files(self.root), self.root)

    def prepare(self) -> None:
        """Do nothing: ``load`` decodes what the cache does not hold, and no split that nobody asked for."""

    def load(self, split: SplitName) -> Split:
        """Give one part, from the cache where it is there; of several processes one decodes, the others wait.

        Args:
            split: Which part.

        Returns:
            Its images and labels, class by class.

        Raises:
            RuntimeError: If the cache cannot be written.
            ValueError: If a picture is broken.
        """
        cached = self._read_cached(split)
        if cached is not None:
            return cached
        with self._cache_is_writable():
            self._cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._cache / ".lock").acquire()
        with lock:
            cached = self._read_cached(split)
            return cached if cached is not None else self._decode(split)

    def _decode(self, split: SplitName) -> Split:
        for left_over in self._cache.glob(f".{split}.pt.*"):  # of a process that was killed: this one has the lock
            left_over.unlink(missing_ok=True)
        listing = self._listing[split]
        names = [name for class_name in self.classes for name in listing[class_name]]
        labels = [label for label, class_name in enumerate(self.classes) for _ in listing[class_name]]
        place = {name: i for i, name in enumerate(names)}
        images = np.empty((len(names), 32, 32, 3), np.uint8)
        done = np.zeros(len(names), bool)

        def decode(group: list[tuple[str, bytes]]) -> None:
            for name, data in group:
                try:
                    images[place[name]] = read_picture(io.BytesIO(data))
                    done[place[name]] = True
                except ValueError as error:
                    raise ValueError(f"--data.root {self.root}: {name} {error}; mend or remove it") from error

        num_cores = os.cpu_count() or 1
        with ThreadPoolExecutor(num_cores) as pool, tqdm(total=len(names), desc=f"Decoding {split}") as bar:
            # A group for each core, because handing over one picture costs as much as decoding it.
            for piece in _pieces(read_files(self.root, place)):
                list(pool.map(decode, (piece[i::num_cores] for i in range(num_cores))))
                bar.update(len(piece))
        if not done.all():
            raise ValueError(f"--data.root {self.root} changed while it was read; start again")
        result = Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))
        with self._writing(f"{split}.pt") as path:
            torch.save({"fingerprint": self._fingerprint, "images": result.images, "labels": result.labels}, path)
        return result

    def _read_index(self) -> dict[str, list[str]] | None:
        try:
            index = json.loads((self._cache / "index.json").read_bytes())
            return dict(index["classes"]) if index["fingerprint"] == self._fingerprint else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or not written by us: made anew

    def _read_cached(self, split: SplitName) -> Split | None:
        try:
            entry = torch.load(self._cache / f"{split}.pt", weights_only=True, mmap=True)
            return Split(entry["images"], entry["labels"]) if entry["fingerprint"] == self._fingerprint else None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            return None

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Give a path to write to; it gets its name in the cache when it is whole."""
        with self._cache_is_writable():
            self._cache.mkdir(parents=True, exist_ok=True)
            temporary = self._cache / f".{name}.{uuid.uuid4().hex}"  # several processes may write at once
            try:
                yield temporary
                temporary.replace(self._cache / name)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _cache_is_writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"--data.cache_dir {self._cache.parent} cannot be written ({error}); give another"
            raise RuntimeError(message) from error


def check_listing(names: list[str], root: Path) -> Listing:
    """Sort the names below a root into splits and classes, and check that they make a dataset.

    Args:
        names: Files, and folders with a slash at their end, relative to the root.
        root: What the messages call the root.

    Returns:
        The names of the pictures of each class of each split.

    Raises:
        ValueError: If a split or a class is missing or empty, or there are fewer than two classes.
    """
    where = f"--data.root {root}"
    found = _find_datasets(names)
    if len(found) != 1:
        problem = "holds more than one dataset" if found else "holds no dataset"
        raise ValueError(f"{where} {problem}: give a folder or archive with train/<class>/* and test/<class>/*")
    listing = next(iter(found.values()))
    for split in ("train", "test"):
        if split not in listing:
            raise ValueError(f"{where} has no {split}/<class>/* folders")
    for split, classes in listing.items():
        for class_name, pictures in classes.items():
            if not pictures:
                raise ValueError(f"{where}: {split}/{class_name} holds no picture ({', '.join(sorted(SUFFIXES))})")
    for split, classes in listing.items():
        alone = classes.keys() ^ listing["train"].keys()
        if alone:
            raise ValueError(f"{where}: not in both train and {split}: the class {', '.join(sorted(alone))}")
    if len(listing["train"]) < 2:
        raise ValueError(f"{where} has one class only: a classifier needs at least two")
    return listing


def _find_datasets(names: list[str]) -> dict[tuple[str, ...], Listing]:
    """Group pictures by the folder that holds ``train`` and ``test``; hidden files and folders are passed over."""
    found: dict[tuple[str, ...], Listing] = defaultdict(dict)
    for name in sorted(set(names)):  # an archive may hold a file twice: the later one counts
        path = PurePosixPath(name)
        folders = path.parts if name.endswith("/") else path.parts[:-1]
        if len(folders) < 2 or folders[-2] not in get_args(SplitName):
            continue
        if any(part.startswith((".", "__")) for part in path.parts):
            continue
        pictures = found[folders[:-2]].setdefault(folders[-2], {}).setdefault(folders[-1], [])
        if not name.endswith("/") and path.suffix.lower() in SUFFIXES:
            pictures.append(name)
    return found


def _fingerprint(root: Path) -> str:
    digest = hashlib.blake2b(f"{FORMAT}\n".encode(), digest_size=16)
    if root.is_file():
        with root.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        for path in _walk(root):
            if not path.exists():
                continue  # a link to nothing
            stat = path.stat()
            digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(folders + files))


def list_files(root: Path) -> list[str]:
    """List a folder or archive.

    Args:
        root: A folder, or a ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip`` file.

    Returns:
        The names of its files, and those of its folders with a slash at their end.

    Raises:
        ValueError: If it is no whole archive.
    """
    if root.is_dir():
        return [path.relative_to(root).as_posix() + "/" * path.is_dir() for path in _walk(root)]
    with _damage_named(root):
        if zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as archive:
                return archive.namelist()
        with tarfile.open(root, "r|*") as archive:
            return [member.name + "/" * member.isdir() for member in archive if member.isfile() or member.isdir()]


def read_files(root: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a folder or archive.

    Args:
        root: As for ``list_files``.
        names: What is read.

    Yields:
        Name and content, in the order in which they lie there.

    Raises:
        ValueError: If it is no whole archive, or a file in it is larger than a picture can be.
    """
    if root.is_dir():
        yield from ((name, (root / name).read_bytes()) for name in names)
        return
    with _damage_named(root):
        if zipfile.is_zipfile(root):
            with zipfile.ZipFile(root) as archive:
                for name in names:
                    _check_size(name, archive.getinfo(name).file_size, root)
                    yield name, archive.read(name)
            return
        with tarfile.open(root, "r|*") as archive:
            for member in archive:
                if member.name in names:
                    _check_size(member.name, member.size, root)
                    file = archive.extractfile(member)
                    assert file is not None  # only regular files are listed
                    yield member.name, file.read()


def _pieces(contents: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Gather files into lists, so that no more than one list of a large archive is in memory."""
    piece: list[tuple[str, bytes]] = []
    num_bytes = 0
    for name, data in contents:
        piece.append((name, data))
        num_bytes += len(data)
        if len(piece) >= 1024 or num_bytes >= MAX_BYTES:
            yield piece
            piece, num_bytes = [], 0
    yield piece


def _check_size(name: str, num_bytes: int, root: Path) -> None:
    if num_bytes > MAX_BYTES:
        raise ValueError(f"--data.root {root}: {name} has {num_bytes:,} bytes, more than {MAX_BYTES:,}; remove it")


@contextmanager
def _damage_named(root: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"--data.root {root} is not a whole .tar, .tar.gz or .zip archive: {error}") from error
