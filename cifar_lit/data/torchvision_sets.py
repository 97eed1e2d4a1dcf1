"""torchvision's datasets with a class for each image, found by the arguments of their constructors."""

import contextlib
import functools
import http.client
import inspect
import operator
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cifar_lit.data.archives import writing
from cifar_lit.data.cache import Cache
from cifar_lit.data.decoding import Resize, fit_image
from cifar_lit.data.download import TIMEOUT_SECONDS
from cifar_lit.data.image_folder import SMALL, as_split
from cifar_lit.data.split import Split, SplitName, hold_out_test
from cifar_lit.data.stored import room_for
from cifar_lit.data.unpacking import DAMAGE
from cifar_lit.errors import UserError, explain_failure, suggest

USUAL = {"root", "train", "split", "target_type", "target_types", "download", "loader"}
USUAL |= {"transform", "target_transform", "transforms"}
OTHER_TASKS = ("CLEVRClassification", "Places365", "Kitti", "SBU", "WIDERFace")
"""Sets with the same arguments: of two, the classes of the test images are not public; boxes; captions; faces."""
FAILURES = (OSError, ImportError, AssertionError, SyntaxError, TypeError, http.client.HTTPException, *DAMAGE)
"""What torchvision and Pillow raise for files that are missing, damaged or out of reach, and for missing packages."""


class TorchvisionSet:
    """A dataset of torchvision in its layout below ``root``; ``EMNIST/letters`` is one of several variants.

    torchvision downloads what is missing. All splits are decoded once and kept in ``cache_dir``; from then on ``root``
    is not read. Without a test split, ``hold_out_test`` chooses one. With ``may_write`` False, the decoded images must
    be there.
    """

    may_write = True

    def __init__(
        self, root: Path, *, name: str, cache_dir: Path, image_size: int = 32, resize: Resize = "squash"
    ) -> None:
        self.root, self._form = root, (image_size, resize)
        self._kind, variant = find_dataset(name)
        self.title = "/".join([self._kind.__name__, *variant.values()])
        self._splits = {split: variant | options for split, options in _find_splits(self._kind).items()}
        self.has_val = "val" in self._splits
        self._cache = Cache(cache_dir, root / f"{self.title} {image_size} {resize}", fingerprint="1")

    @functools.cached_property
    def classes(self) -> list[str]:
        """The names of the classes; to know them, all images are downloaded and decoded."""
        return list(self._read("index")["classes"])

    def prepare(self) -> None:
        """Download and decode what is not in the cache; of several processes one does it, and the others wait."""
        self._read("index")

    def load(self, split: SplitName) -> Split:
        """Return a split, in torchvision's order."""
        name = split if split in self._splits else "train"
        images = as_split(self._read(name), name)
        if "test" in self._splits:
            return images
        is_test = hold_out_test(images, self.classes)
        return images.part(is_test if split == "test" else ~is_test)

    def _read(self, name: str) -> dict[str, Any]:
        entry = self._cache.read(name)
        if not (entry or self.may_write):
            raise UserError(f"`root` {self.root}: {self.title} is not decoded yet, and only a file names it: give it")
        return entry or self._cache.make(name, self._decode_all)

    def _decode_all(self) -> dict[str, dict[str, Any]]:
        datasets = self._open()
        entries = {split: self._decode(split, dataset) for split, dataset in datasets.items()}
        values = sorted({label for entry in entries.values() for label in entry["labels"].tolist()})
        for entry in entries.values():  # labels of EMNIST/letters begin at 1
            entry["labels"] = torch.searchsorted(torch.tensor(values), entry["labels"])
        return {**entries, "index": {"classes": _class_names(datasets["train"], values)}}

    def _open(self) -> dict[str, Any]:
        """Return torchvision's datasets; what is missing is downloaded, and what was interrupted unpacked again."""

        def each(kind: Any, **download: bool) -> dict[str, Any]:
            download = download if "download" in _arguments(kind) else {}
            return {split: kind(str(self.root), **options, **download) for split, options in self._splits.items()}

        unfinished = self.root / f".{self._kind.__name__}.unfinished"

        def find() -> dict[str, Any] | None:
            with contextlib.suppress(*FAILURES):
                return None if unfinished.exists() else each(self._kind, download=False)
            return None

        if datasets := find():
            return datasets
        with writing(self.root, f"`root` {self.root}"):
            if datasets := find():  # another process had the lock, and may be reading what would be written again
                return datasets
            unfinished.touch()
            try:
                socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision has none
                datasets = each(_unpacking(self._kind), download=True)
            except FAILURES as error:
                if explain_failure(error):  # such as a full disk, while it was unpacked
                    raise
                unfinished.unlink()
                problem = f"`root` {self.root}: torchvision neither finds nor downloads {self.title}: {_explain(error)}"
                raise UserError(f"{problem}; its files can be put there by hand", exit_code=1) from error
            finally:
                socket.setdefaulttimeout(None)
            unfinished.unlink()
        return datasets

    def _decode(self, split: str, dataset: Any) -> dict[str, Any]:
        forms = dict.fromkeys((self._form, SMALL))
        rooms = [room_for((len(dataset), size, size, 3), self._cache.folder, num_saved=1) for size, _ in forms]
        labels = torch.empty(len(dataset), dtype=torch.int64)

        def decode(i: int) -> None:
            try:
                image, label = dataset[i]
                labels[i] = operator.index(label)
                for room, form in zip(rooms, forms, strict=True):
                    room.numpy()[i] = fit_image(image, *form)
            except FAILURES as error:
                which = f"image {i} of {split}, or its class, cannot be used ({error})"
                raise UserError(f"`root` {self.root}: {self.title}: {which}") from error

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in tqdm(pool.map(decode, range(len(dataset))), desc=f"Decoding {split}", total=len(dataset)):
                pass
        small = {"small": rooms[1]} if len(rooms) > 1 else {}
        return {"images": rooms[0], "labels": labels, **small}


def _arguments(kind: Any) -> dict[str, Any]:
    """Return the arguments of a class with their defaults, also those that it hands on to its base class."""
    own = inspect.signature(kind.__init__).parameters
    base = _arguments(kind.__base__) if "kwargs" in own and kind is not object else {}
    return {name: one.default for name, one in own.items() if name not in ("self", "kwargs")} | base


def _is_of_classes(kind: Any) -> bool:
    if not inspect.isclass(kind) or kind.__name__ in OTHER_TASKS:
        return False
    found = _arguments(kind)
    required = {name for name, default in found.items() if default is inspect.Parameter.empty}
    is_usual = {"root"} <= required <= {"root", "split"} and "target_transform" in found
    has_classes = found.get("target_type", found.get("target_types", "category")) == "category"
    has_splits = "train" in found or str(found.get("split")).startswith("train")
    is_whole = "download" in found and found.keys() <= USUAL
    return is_usual and has_classes and (has_splits or is_whole)


def find_dataset(name: str) -> tuple[Any, dict[str, str]]:
    """Return the class of a dataset, and the argument for what is after a slash; no file is read."""
    from torchvision import datasets  # which takes a second

    known = {kind.__name__.lower(): kind for kind in vars(datasets).values() if _is_of_classes(kind)}
    first, _, variant = name.partition("/")
    if (kind := known.get(first.lower())) is None:
        names = ", ".join(sorted(kind.__name__ for kind in known.values()))
        raise UserError(f"`dataset` is {name}: must be one of {names}{suggest(first.lower(), known)}")
    found = _arguments(kind)
    has_parts = {"train", "split"} <= found.keys()  # as EMNIST, of which one must be chosen
    own = [key for key, value in found.items() if key not in USUAL and isinstance(value, str)]
    choice = "split" if has_parts else next(iter(own), "")
    values = _values(kind, choice) if has_parts or (choice and variant) else [""]
    if variant not in values:
        names = ", ".join(f"{kind.__name__}/{value}".strip("/") for value in values)
        raise UserError(f"`dataset` is {name}: must be one of {names}{suggest(variant, values)}")
    return kind, {choice: variant} if variant else {}


def _find_splits(kind: Any) -> dict[str, dict[str, Any]]:
    """Return the arguments of each split of a dataset."""
    found = _arguments(kind)
    if "train" in found:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in found:
        return {"train": {}}
    values = _values(kind, "split")
    val = next((name for name in ("val", "valid") if name in values), None)
    splits = {"train": "train" if "train" in values else found["split"], "test": "test" if "test" in values else val}
    if "train" in values and splits["test"] != val:
        splits["val"] = val
    return {name: {"split": value} for name, value in splits.items() if value}


def _values(kind: Any, argument: str) -> list[str]:
    """Return the values that an argument may have: torchvision lists them in its error for any other."""
    try:
        kind("", **{argument: ""})
    except FAILURES as error:
        if values := re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2]):
            return values
        raise UserError(f"`dataset` {kind.__name__}: {_explain(error)}") from error
    return []


def _class_names(dataset: Any, values: list[int]) -> list[str]:
    """Return a name for each label: torchvision's, or the number."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    known = {label: name for name, label in getattr(dataset, "class_to_idx", {}).items()} | dict(enumerate(names))
    found = [known.get(value, value) for value in values]
    texts = [", ".join(name) if isinstance(name, tuple) else str(name) for name in found]
    return [f"{text} {value}" if texts.count(text) > 1 else text for text, value in zip(texts, values, strict=True)]


def _unpacking(kind: Any) -> Any:
    """Return a class that unpacks once more: after an interruption, torchvision takes a part for all."""
    answers = iter([False])
    check = {"_check_exists": lambda self: next(answers, True) and kind._check_exists(self)}
    return type(kind.__name__, (kind,), check if hasattr(kind, "_check_exists") else {})


def _explain(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"needs {error.name}: pip install {error.name}"
    return " ".join(str(error).split()) or type(error).__name__
