"""Decoding of one image: any size and mode -> 32x32 RGB."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cifar_lit.errors import UserError

MAX_PIXELS = 64_000_000


def read_image(file: IO[bytes]) -> NDArray[np.uint8]:
    """Read an encoded image the way the models see it: ``(32, 32, 3)``, uint8, RGB.

    The EXIF orientation is applied. Of an animation the first frame is taken. Transparent pixels become white, and 16
    bits become 8. Other sizes are resized (bilinear, antialiased), without keeping the aspect ratio.

    What cannot be read, or has more than ``MAX_PIXELS`` pixels, is a ``UserError``; its message continues a file name.
    """
    try:
        with Image.open(file) as image:
            num_pixels = image.width * image.height
            if num_pixels <= MAX_PIXELS:
                return fit_image(image)
    except UnidentifiedImageError as error:
        raise UserError("is not an image") from error
    except Exception as error:  # Pillow does not document what it raises for a broken file
        raise UserError(f"is broken ({error})") from error
    raise UserError(f"has {num_pixels:,} pixels, more than {MAX_PIXELS:,}")


def fit_image(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an open image to what ``read_image`` returns."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 8 bits instead of scaling it.
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != (32, 32):
        image = image.resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(image)


def load_images(images: Sequence[Image.Image | str | Path]) -> Tensor:
    """Load images from files, or convert open ones: ``(N, 32, 32, 3)``, uint8; a broken file is a ``UserError``."""
    loaded = np.empty((len(images), 32, 32, 3), np.uint8)
    for i, image in enumerate(images):
        if isinstance(image, Image.Image):
            loaded[i] = fit_image(image)
            continue
        with Path(image).open("rb") as file:
            try:
                loaded[i] = read_image(file)
            except UserError as error:
                raise UserError(f"{image} {error}") from error
    return torch.from_numpy(loaded)
