"""Decoding of one image: any size and mode -> square RGB of a given size."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cifar_lit.data.archives import read_file
from cifar_lit.errors import UserError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
"""What is decoded: raster formats only. Pillow would also start Ghostscript for an EPS file, and so on."""
MAX_PIXELS = 64_000_000
Resize = Literal["squash", "crop", "pad"]
"""How an image becomes square: by another aspect ratio, without the ends of its long side, or with black bars."""


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF is missing in older ones


@functools.cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def is_named_image(name: str) -> bool:
    """Return whether the name of a file is that of an image."""
    return PurePath(name).suffix.lower() in _suffixes()


def is_image(open_file: Callable[[], IO[bytes]]) -> bool:
    """Return whether the content of a file is that of an image; only its header is read."""
    try:
        with open_file() as file, Image.open(file, formats=_formats()):
            return True
    except Image.DecompressionBombError:
        return True  # an image, which read_image refuses
    except Exception:
        return False


def read_image(source: IO[bytes] | Path, size: int = 32, resize: Resize = "squash") -> NDArray[np.uint8]:
    """Read an encoded image the way the models see it: ``(size, size, 3)``, uint8, RGB.

    The EXIF orientation is applied. Of an animation the first frame is taken. Transparent pixels become white, and 16
    bits become 8. Other sizes are resized (bilinear, antialiased): ``squash`` does not keep the aspect ratio, ``crop``
    scales the short side to ``size`` and cuts out the middle, ``pad`` scales the long side and adds black bars.

    What is not one of ``FORMATS``, cannot be read, has more than ``MAX_PIXELS`` pixels or has pixels of an unknown
    range (floats, 32 bits) is a ``UserError``; its message continues a file name.
    """
    return to_square(read_rgb(source), size, resize)


def read_rgb(source: IO[bytes] | Path) -> Image.Image:
    """Read an encoded image of any size, for ``to_square``."""
    if isinstance(source, Path):
        content = read_file(source)
        if isinstance(content, UserError):
            raise content
        source = io.BytesIO(content)
    try:
        with Image.open(source, formats=_formats()) as image:
            num_pixels = image.width * image.height
            if num_pixels <= MAX_PIXELS:
                return to_rgb(image)
    except UnidentifiedImageError as error:
        raise UserError("is not an image") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow does not document what it raises for a broken file
        raise UserError(f"is broken ({error})") from error
    raise UserError(f"has {num_pixels:,} pixels, more than {MAX_PIXELS:,}")


def fit_image(image: Image.Image, size: int = 32, resize: Resize = "squash") -> NDArray[np.uint8]:
    """Convert an open image to what ``read_image`` returns."""
    return to_square(to_rgb(image), size, resize)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an open image upright, and convert it to RGB."""
    has_16_bits = image.mode != "I" or image.format in ("PNG", "PPM")  # which Pillow scales to 16 bits
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        is_known = has_16_bits or pixels.max() > 255 or not pixels.any()  # else perhaps 8 bits, as NumPy's integers
        if not is_known:
            raise UserError("has 32 bits for pixels of at most 255, whose range is unknown: convert it to 8 or 16 bits")
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise UserError("has pixels of more than 16 bits, whose range is unknown: convert it to 8 bits")
        # Pillow clips 16-bit grey to 8 bits instead of scaling it.
        image = Image.fromarray((pixels // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_square(image: Image.Image, size: int, resize: Resize) -> NDArray[np.uint8]:
    """Resize an RGB image, as described for ``read_image``."""
    if resize == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    elif resize == "pad":
        if max(image.size) > size * min(image.size):
            raise UserError(f"has {image.width}x{image.height} pixels, too narrow to keep its aspect ratio")
        image = ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def load_images(images: Sequence[Image.Image | str | Path], size: int = 32, resize: Resize = "squash") -> Tensor:
    """Load images from files, or convert open ones: ``(N, size, size, 3)``, uint8; a broken file: ``UserError``."""
    loaded = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        if isinstance(image, Image.Image):
            loaded[i] = fit_image(image, size, resize)
            continue
        try:
            loaded[i] = read_image(Path(image), size, resize)
        except UserError as error:
            raise UserError(f"{image} {error}") from error
    return torch.from_numpy(loaded)
