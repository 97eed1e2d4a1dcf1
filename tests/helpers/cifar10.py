"""Archives of CIFAR-10 and CIFAR-100 in the official format, with a few random images."""

import dataclasses
import hashlib
import io
import pickle
import tarfile
from typing import Any, ClassVar

import numpy as np

from cifar_lit.data.cifar10 import ARCHIVE, CIFAR100_ARCHIVE, CLASSES, Archive

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def small_files(num_images: int = 4) -> dict[str, bytes]:
    """Make the files of the archive, with a few random images each."""
    rng = np.random.default_rng(0)
    files = {}
    for name in NAMES:
        data = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, num_images).tolist()
        files[name] = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}, protocol=2)
    return files


class _OfPython2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: those of the official files are read as bytes or as text."""

    def save_string(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, bytes: save_string}


def dump(value: Any) -> bytes:
    """Pickle as the official files are."""
    file = io.BytesIO()
    _OfPython2(file, protocol=2).dump(value)
    return file.getvalue()


def small_files_100(num_images: int = 120) -> dict[str, bytes]:
    """Make the files of the archive of CIFAR-100, with as many random images in train and half of them in test."""
    rng = np.random.default_rng(100)
    files = {}
    for name, number in (("train", num_images), ("test", num_images // 2)):
        fine = rng.permutation(np.arange(number) % 100)
        entry = {
            b"data": rng.integers(0, 256, (number, 3072), dtype=np.uint8),
            b"fine_labels": fine.tolist(),
            b"coarse_labels": (fine // 5).tolist(),
            b"filenames": [f"{number}.png".encode() for number in range(number)],
            b"batch_label": b"training batch 1 of 1",
        }
        files[name] = dump(entry)
    names = [name.encode() for name in CIFAR100_ARCHIVE.classes.split()]
    files["meta"] = dump({b"fine_label_names": names})
    return files


def pack(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> tuple[bytes, Archive]:
    """Pack files into an archive; return it with the checksums of ``small_files``, or ``small_files_100``."""
    facts, known = (CIFAR100_ARCHIVE, small_files_100()) if "train" in files else (ARCHIVE, small_files())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{facts.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra or []:
            tar.addfile(member)
    md5 = hashlib.md5(buffer.getvalue()).hexdigest()
    sums = {name: hashlib.md5(content).hexdigest() for name, content in known.items()}
    name = "cifar.tar.gz" if facts is ARCHIVE else "cifar100.tar.gz"
    return buffer.getvalue(), dataclasses.replace(facts, name=name, md5=md5, urls=(), members=sums)
