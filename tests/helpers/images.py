"""Tiny images that any network learns, and files of them."""

import functools
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TINY_CLASSES = ("bright", "dark", "green")


def tiny_image(class_name: str, number: int) -> Image.Image:
    """Make an image of an odd size; each class has its own colour."""
    rng = np.random.default_rng(number)
    height, width = 20 + number % 7, 32 + 5 * (number % 3)
    colour = {"bright": (230, 220, 210), "dark": (30, 20, 40), "green": (20, 200, 40)}[class_name]
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, suffix: str) -> bytes:
    """Encode an image as a file of the given ending."""
    buffer = io.BytesIO()
    image.save(buffer, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}[suffix])
    return buffer.getvalue()


@functools.cache
def tiny_file(class_name: str, number: int, suffix: str) -> bytes:
    """Make the file of an image, once a session."""
    return encode(tiny_image(class_name, number), suffix)


def tiny_files(num_train: int = 20, num_test: int = 8) -> dict[str, bytes]:
    """Make a dataset of three classes: the content of each file by its name."""
    suffixes = (".jpg", ".png", ".webp", ".bmp")
    return {
        f"{split}/{name}/{number}{suffixes[number % 4]}": tiny_file(name, number, suffixes[number % 4])
        for split, numbers in (("train", range(num_train)), ("test", range(100, 100 + num_test)))
        for name in TINY_CLASSES
        for number in numbers
    }


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar archive, compressed if its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def put(where: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Write files as a folder or as an archive."""
    if where == "folder":
        return write_files(tmp_path / "pictures", files)
    path = tmp_path / f"pictures.{where}"
    return write_zip(path, files) if where == "zip" else write_tar(path, files)
