"""Datasets of torchvision in their official formats, with a few random images."""

import bz2
import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.helpers.images import encode, tiny_image

Array = npt.NDArray[Any]


def random_images(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array: Array) -> bytes:
    """Encode an array of bytes as MNIST's files are."""
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(
    root: Path, *, name: str = "MNIST", num_train: int = 40, num_test: int = 20, pack: bool = False
) -> None:
    """Write the files of a set like MNIST, with labels that count up to 9; as they are downloaded or unpacked."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, number in (("train", num_train), ("t10k", num_test)):
        labels = np.arange(number, dtype=np.uint8) % 10
        images = random_images(number, 28, 28, seed=number)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{split}-{kind}-ubyte"
            if pack:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))


def write_emnist_letters(root: Path) -> None:
    """Write the letters of EMNIST, whose labels begin at 1; all but the last letter occur."""
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"emnist-letters-{split}-images-idx3-ubyte").write_bytes(idx(random_images(50, 28, 28)))
        labels = np.arange(50, dtype=np.uint8) % 25 + 1
        (folder / f"emnist-letters-{split}-labels-idx1-ubyte").write_bytes(idx(labels))


def usps(num_images: int = 20) -> bytes:
    """Encode the file of a split of USPS: a label from 1, and 256 numbers from -1 to 1."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (num_images, 256))
    lines = [
        " ".join([str(i % 10 + 1), *(f"{n}:{value:.3f}" for n, value in enumerate(row, start=1))])
        for i, row in enumerate(pixels)
    ]
    return bz2.compress("\n".join(lines).encode())


def write_eurosat_zip(root: Path, per_class: int = 10) -> None:
    """Write the archive of EuroSAT, which has no test split, as it is downloaded."""
    (root / "eurosat").mkdir(parents=True)
    with zipfile.ZipFile(root / "eurosat/EuroSAT.zip", "w") as archive:
        for name, colour in (("Forest", "dark"), ("River", "green"), ("SeaLake", "bright")):
            for i in range(per_class):
                archive.writestr(f"2750/{name}/{name}_{i}.jpg", encode(tiny_image(colour, i), ".jpg"))
