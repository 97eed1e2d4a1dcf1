"""One picture, of any size and mode -> 32x32 RGB."""

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000


def read_picture(file: IO[bytes]) -> NDArray[np.uint8]:
    """Read a picture the way the models see it.

    It is turned upright as its EXIF data says, of an animation the first frame is taken, transparency is put on
    white, 16 bits become 8, and another size is resized to 32x32 (bilinear, antialiased; the sides are not kept in
    proportion).

    Args:
        file: The encoded picture.

    Returns:
        ``(32, 32, 3)``, uint8, RGB.

    Raises:
        ValueError: If it cannot be read, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(file) as opened:
            num_pixels = opened.width * opened.height
            image = fit_picture(opened) if num_pixels <= MAX_PIXELS else None
    except UnidentifiedImageError as error:
        raise ValueError("is not a picture") from error
    except Exception as error:  # Pillow has no closed list of what it raises for a broken file
        raise ValueError(f"is broken ({error})") from error
    if image is None:
        raise ValueError(f"has {num_pixels:,} pixels, more than {MAX_PIXELS:,}")
    return image


def fit_picture(image: Image.Image) -> NDArray[np.uint8]:
    """Turn a picture that is open into what the models see, as ``read_picture`` says.

    Args:
        image: The picture, of any size and mode.

    Returns:
        ``(32, 32, 3)``, uint8, RGB.
    """
    image = _to_rgb(ImageOps.exif_transpose(image))
    if image.size != (32, 32):
        image = image.resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 8 bits instead of scaling it.
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
