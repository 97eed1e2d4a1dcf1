"""Images of the user, in a folder or archive, by split and class or by class alone, decoded once and cached."""

import functools
import hashlib
import io
import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from cifar_lit.data.archives import read_each, reading, walk
from cifar_lit.data.cache import Cache
from cifar_lit.data.decoding import Resize, is_named_image, read_rgb, to_square
from cifar_lit.data.layout import Listing, find_dataset
from cifar_lit.data.listing import SPLITS, is_archive, is_hidden, say
from cifar_lit.data.split import Split, SplitName, hash_images, hold_out_test
from cifar_lit.data.stored import StoredImages, fits, room_for
from cifar_lit.data.unpacking import MAX_BYTES
from cifar_lit.errors import UserError

FORMAT = 5  # of decoding and cache: raise it when one of them changes, so that no older cache is used
SMALL: tuple[int, Resize] = (32, "squash")  # the form in which images are hashed
MAX_HASHED = 1 << 30  # bytes of an archive; a larger one has changed if its size or time has
MAX_NAMED = 10  # broken images that are named


class ImageFolder:
    """Images in the folders of their classes, in a folder or in an archive that is read without unpacking it.

    Below the root, or below a single folder in it, there are ``train/<class>/**`` and optionally ``test/<class>/**``
    and ``val/<class>/**`` (or training, testing, valid, validation; in any case), or only ``<class>/**``: JPEG, PNG,
    WebP, BMP, GIF, TIFF, AVIF or PPM files of any size. Without test, ``hold_out_test`` chooses its images from the
    others. They become squares of ``image_size`` pixels. Decoded images are kept in ``cache_dir``, one entry per root
    and size, until the root changes: the names, sizes or times of the files of a folder, the content of an archive.
    What ``is_hidden`` does not count. A root that changes while it is read is a ``UserError``.
    """

    def __init__(self, root: Path, *, cache_dir: Path, image_size: int = 32, resize: Resize = "squash") -> None:
        if not root.exists():
            raise UserError(f"`root` {root}: no such folder or archive")
        if not (root.is_dir() or is_archive(root)):
            raise UserError(f"`root` {root} is neither a folder nor a complete .tar, .tar.gz or .zip archive")
        if cache_dir.resolve() == root.resolve() or lies_among_images(cache_dir, root):
            way_out = "give another folder, or one whose name begins with a dot"
            raise UserError(f"`cache_dir` {cache_dir} lies among the images of `root` {root}: {way_out}")
        self.root = root
        self.title = f"images from {root}"
        self._form = (image_size, resize)
        self._version = _version(root.stat())  # an archive's: its content is read once
        self._cache = Cache(cache_dir, root, _fingerprint(root))
        index = self._cache.read("index") or self._make_index()
        if index["passed_over"]:
            say(index["passed_over"])
        self.classes: list[str] = index["classes"]["train"]
        self.has_val = "val" in index["classes"]
        self._has_test = "test" in index["classes"]

    @functools.cached_property
    def _dataset(self) -> tuple[Listing, str]:
        dataset = find_dataset(self.root)
        self._check_unchanged()
        return dataset

    def _check_unchanged(self) -> None:
        """Refuse images that may not be those of the cache's fingerprint."""
        now = _version(self.root.stat()) if self.root.is_file() else _fingerprint(self.root)
        if now != (self._version if self.root.is_file() else self._cache.fingerprint):
            raise UserError(f"`root` {self.root} changed meanwhile: start again", exit_code=1)

    def _make_index(self) -> dict[str, Any]:
        listing, passed_over = self._dataset  # says what is wrong with it before a cache is made
        index = {"classes": {split: list(listing[split]) for split in listing}, "passed_over": passed_over}
        return self._cache.make("index", lambda: {"index": index})

    def prepare(self) -> None:
        """Do nothing: ``load`` decodes the split that it is asked for, if the cache does not have it."""

    def load(self, split: SplitName) -> Split:
        """Return a split, class by class; of a root without test images, a part of the others."""
        if self._has_test or split == "val":
            return self._load(split)
        images = self._load("train")
        try:
            is_test = hold_out_test(images, self.classes)
        except UserError as error:
            raise UserError(f"`root` {self.root}: {error}") from error
        number = f"{int(is_test.sum()):,} of {len(is_test):,} pictures"
        say(f"no test folder in {self.root}: {number}, chosen by their content, are held out for the test")
        return images.part(is_test if split == "test" else ~is_test)

    def files(self, splits: Iterable[str]) -> dict[int, list[str]]:
        """Return the names of the files of each image, by its hash; none of what an older version has cached."""
        found = defaultdict(list)
        there: dict[SplitName, bool] = {"train": True, "val": self.has_val, "test": self._has_test}
        for entry in (self._entry(split) for split in there if there[split] and split in splits):
            hashes = hash_images(entry.get("small", entry["images"]), seed=0)
            for code, name in zip(hashes.tolist(), entry.get("names", ()), strict=False):
                found[code].append(name)
        return found

    def _load(self, split: SplitName) -> Split:
        return as_split(self._entry(split), split)

    def _entry(self, split: SplitName) -> dict[str, Any]:
        name = split if self._form == SMALL else f"{split}-{self._form[0]}-{self._form[1]}"
        entry = self._cache.read(name)  # without a lock: a shared cache may be read-only
        return entry or self._cache.make(name, lambda: {name: self._decode(split)})

    def _decode(self, split: SplitName) -> dict[str, Any]:
        """Decode a split; what is broken is named at once."""
        names = [self._dataset[0][split][class_name] for class_name in self.classes]
        position = {name: i for i, name in enumerate(itertools.chain(*names))}
        forms = dict.fromkeys((self._form, SMALL))
        images = [room_for((len(position), size, size, 3), self._cache.folder, num_saved=1) for size, _ in forms]
        broken: dict[str, UserError] = {}

        def decode(group: list[tuple[str, bytes | UserError]]) -> None:
            for name, content in group:
                try:
                    if isinstance(content, UserError):
                        raise content
                    image = read_rgb(io.BytesIO(content))
                    for room, form in zip(images, forms, strict=True):
                        room.numpy()[position[name]] = to_square(image, *form)
                except UserError as error:
                    broken[name] = error

        num_cores = os.cpu_count() or 1
        with ThreadPoolExecutor(num_cores) as pool, tqdm(total=len(position), desc=f"Decoding {split}") as bar:
            # One group per core, because handing over an image costs as much as decoding it.
            for chunk in _chunks(read_each(self.root, position)):
                list(pool.map(decode, (chunk[i::num_cores] for i in range(num_cores))))
                bar.update(len(chunk))
        self._check_unchanged()
        if broken:
            shown = "; ".join(f"{name} {error}".strip() for name, error in sorted(broken.items())[:MAX_NAMED])
            more = f"; and {len(broken) - MAX_NAMED:,} more" if len(broken) > MAX_NAMED else ""
            them = "it" if len(broken) == 1 else f"these {len(broken):,} of {len(position):,} pictures in {split}"
            raise UserError(f"`root` {self.root}: {shown}{more}; repair or remove {them}")
        labels = torch.tensor([label for label, of_class in enumerate(names) for _ in of_class])
        entry = {"images": images[0], "labels": labels, "names": list(position)}
        return {**entry, **({"small": images[1]} if len(images) > 1 else {})}


def as_split(entry: dict[str, Any], name: str) -> Split:
    """Return the split of an entry of the cache, whose images stay on the disk if they do not fit into memory."""
    images, small = entry["images"], entry.get("small", entry["images"])
    if not fits(images):
        say(f"{images.numel() / 1e9:.2f} GB of images in {name} stay on the disk, from which batches are read")
    is_plain = images is small and fits(images)
    return Split(images if is_plain else cast("Any", StoredImages(images, small)), entry["labels"])


def _fingerprint(root: Path) -> str:
    digest = hashlib.blake2b(f"{FORMAT}\n".encode(), digest_size=16)
    with reading(root):
        if root.is_file() and root.stat().st_size <= MAX_HASHED:
            with root.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        elif root.is_file():
            digest.update(_version(root.stat()))
        else:
            # Not of runs, nor of a folder beside those of the splits: they may be written to meanwhile.
            splits, others = _folders(root)
            beside = others if splits else set()
            for name, status in walk(root, skip=lambda name: is_hidden(name) or name in beside):
                if status is None:
                    continue  # a link to nothing
                if stat.S_ISDIR(status.st_mode):
                    digest.update(os.fsencode(f"{name}/\n"))
                elif "/" in name or is_named_image(name):  # no class has others that lie in the root, such as a log
                    digest.update(os.fsencode(f"{name}\0") + _version(status))
    return digest.hexdigest()


def lies_among_images(folder: Path, root: Path) -> bool:
    """Return whether a folder, which may not exist yet, lies where those of the classes are."""
    inside, above = folder.resolve(), root.resolve()
    if inside == above or not (above.is_dir() and inside.is_relative_to(above)):
        return False
    name, (splits, _) = inside.relative_to(above), _folders(root)
    return not is_hidden(name.as_posix()) and (not splits or name.parts[0] in splits)


def _folders(root: Path) -> tuple[set[str], set[str]]:
    """Return the names of the splits' folders in a root, and of the others."""
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    splits = {name for name in folders if name.lower() in SPLITS}
    return splits, folders - splits


def _version(status: os.stat_result) -> bytes:
    return f"{status.st_size}\0{status.st_mtime_ns}\n".encode()


def _chunks(contents: Iterator[tuple[str, bytes | UserError]]) -> Iterator[list[tuple[str, bytes | UserError]]]:
    """Gather files into lists, so that only a part of a large archive is in memory at once."""
    chunk: dict[str, bytes | UserError] = {}  # in an archive, a name may occur twice: the later file counts
    num_bytes = 0
    for name, data in contents:
        chunk[name] = data
        num_bytes += 0 if isinstance(data, UserError) else len(data)
        if len(chunk) >= 1024 or num_bytes >= MAX_BYTES:
            yield list(chunk.items())
            chunk, num_bytes = {}, 0
    yield list(chunk.items())
