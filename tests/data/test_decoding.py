"""Decoding: images of every size and mode become upright, 32x32 and RGB."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lit.data.decoding import load_images, read_image
from cifar_lit.errors import UserError


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def test_a_image_of_the_right_size_comes_out_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(read_image(saved(Image.fromarray(pixels), "PNG")), pixels)


def test_another_size_is_resized_with_antialiasing() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[::2] = 200  # finer than a pixel of the result: antialiased it is an even grey, sampled it is not
    result = read_image(saved(Image.fromarray(stripes), "PNG"))
    assert result.shape == (32, 32, 3)
    assert abs(int(result.min()) - 100) <= 10
    assert abs(int(result.max()) - 100) <= 10


@pytest.mark.parametrize(
    ("make", "kind", "expected"),
    [
        (lambda: Image.new("L", (40, 50), 77), "PNG", (77, 77, 77)),
        (lambda: Image.new("1", (40, 50), 1), "PNG", (255, 255, 255)),
        (lambda: Image.new("RGBA", (40, 50), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (lambda: Image.new("RGBA", (40, 50), (200, 0, 0, 255)), "PNG", (200, 0, 0)),
        (lambda: Image.new("RGBA", (40, 50), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (lambda: Image.new("LA", (40, 50), (10, 0)), "PNG", (255, 255, 255)),
        (lambda: Image.new("CMYK", (40, 50), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (lambda: Image.fromarray(np.full((50, 40), 65535, np.uint16)), "PNG", (255, 255, 255)),
        (lambda: Image.fromarray(np.full((50, 40), 257 * 90, np.uint16)), "PNG", (90, 90, 90)),
        (lambda: Image.new("RGB", (40, 50), (1, 2, 3)).quantize(4), "PNG", (1, 2, 3)),
    ],
    ids=["grey", "1 bit", "clear", "opaque", "fifth", "grey clear", "CMYK", "16 bits white", "16 bits", "palette"],
)
def test_every_mode_becomes_rgb(make: Callable[[], Image.Image], kind: str, expected: tuple[int, int, int]) -> None:
    result = read_image(saved(make(), kind))
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.broadcast_to(np.array(expected), (32, 32, 3)))


def test_a_colour_that_means_transparent_becomes_white() -> None:
    image = Image.new("RGB", (32, 32), (9, 9, 9))
    image.putpixel((0, 0), (50, 60, 70))
    result = read_image(saved(image, "PNG", transparency=(9, 9, 9)))
    assert result[0, 0].tolist() == [50, 60, 70]
    assert result[1, 1].tolist() == [255, 255, 255]


def test_exif_turns_an_image_upright() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    result = read_image(saved(image, "PNG", exif=exif))
    assert result[0, 0].tolist() == [0, 0, 0]
    assert result[31, 0].tolist() == [255, 255, 255]


def test_damaged_exif_data_is_named() -> None:
    image = saved(Image.new("RGB", (32, 32)), "JPEG").getvalue()
    # Orientation with a count of 1 and type of a text: Pillow's reader fails on it in its own way.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01z\0\0\0\0\0\0\0"
    marked = image[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + image[2:]
    try:
        assert read_image(io.BytesIO(marked)).shape == (32, 32, 3)
    except UserError as error:
        assert "is broken" in str(error)  # noqa: PT017 (which of the two depends on Pillow's version)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    result = read_image(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert result[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not an image"),
        (b"not an image", "is not an image"),
        (saved(Image.effect_noise((64, 64), 90), "JPEG").getvalue()[:900], "is broken"),
        (saved(Image.effect_noise((64, 64), 90), "PNG").getvalue()[:900], "is broken"),
    ],
    ids=["empty", "text", "half a JPEG", "half a PNG"],
)
def test_what_cannot_be_read_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read_image(io.BytesIO(content))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    for size in ((10_000, 9_000), (14_000, 13_000)):
        with pytest.raises(UserError, match="pixels"):
            read_image(saved(Image.new("1", size), "PNG"))


def test_files_and_open_images_are_loaded_alike_and_a_broken_file_is_named() -> None:
    images = [Image.effect_noise((40, 50), 90), Image.new("RGB", (32, 32), (1, 2, 3))]
    for number, image in enumerate(images):
        image.save(f"{number}.png")
    from_files = load_images(["0.png", Path("1.png")])
    assert from_files.shape == (2, 32, 32, 3)
    assert torch.equal(from_files, load_images(images))
    assert load_images([]).shape == (0, 32, 32, 3)
    Path("2.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"^2\.png is not an image$"):
        load_images(["1.png", "2.png"])
