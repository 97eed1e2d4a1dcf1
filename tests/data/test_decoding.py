"""Decoding: images of every size and mode become upright, 32x32 and RGB."""

import ast
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, features

import cifar_lit
from cifar_lit.data.decoding import Resize, fit_image, load_images, read_image
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


def test_damaged_exif_data_is_passed_over_or_named() -> None:
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


AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="not in this Pillow"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", AVIF])
def test_each_format_is_decoded_whatever_the_name(kind: str) -> None:
    result = read_image(saved(Image.new("RGB", (40, 50), (0, 250, 0)), kind))
    assert np.abs(result.astype(int) - (0, 250, 0)).max() < 5


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "JPEG2000"])
def test_other_formats_start_no_reader(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    with pytest.raises(UserError, match="is not an image"):
        read_image(saved(Image.new("RGB", (32, 32)), kind))


def test_pictures_are_opened_in_one_place() -> None:
    package = Path(cifar_lit.__file__).parent
    places = {
        (path.name, function.name)
        for path in package.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef) and "Image.open(" in ast.unparse(function)
    }
    assert places == {("decoding.py", "is_image"), ("decoding.py", "read_rgb")}


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((40, 40), 0.5, np.float32), None),
        (np.full((40, 40), 70_000, np.int32), None),
        (np.full((40, 40), -1, np.int32), None),
        (np.full((40, 40), 255, np.int32), None),
        (np.full((40, 40), 257 * 90, np.int32), 90),
        (np.zeros((40, 40), np.int32), 0),
        (np.full((40, 40), 255, np.uint16), 0),
    ],
    ids=["float", "32 bits", "negative", "8 bits in 32", "16 bits in 32", "black", "dark"],
)
def test_pixels_of_an_unknown_range_are_refused(pixels: np.ndarray, expected: int | None) -> None:
    file = saved(Image.fromarray(pixels), "TIFF")
    if expected is None:
        with pytest.raises(
            UserError, match=r"has (pixels of more than 16|32) bits.* whose range is unknown: convert it"
        ):
            read_image(file)
    else:
        assert set(read_image(file).flat) == {expected}


def test_a_palette_with_transparency_and_the_first_frame_of_a_gif() -> None:
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 32, 16))
    for kind in ("PNG", "GIF"):
        image = clear.quantize(4) if kind == "PNG" else clear
        options = {} if kind == "PNG" else {"save_all": True, "append_images": [Image.new("RGBA", (32, 32), "green")]}
        result = read_image(saved(image, kind, **options))
        assert result[0, 0].tolist() == [0, 0, 200]
        assert result[31, 31].tolist() == [255, 255, 255]


def test_a_pipe_is_not_opened_and_a_missing_file_is_named() -> None:
    os.mkfifo("pipe.png")
    with pytest.raises(UserError, match=r"^pipe\.png is no regular file$"):
        load_images(["pipe.png"])
    with pytest.raises(UserError, match=r"^gone\.png cannot be read \(.*No such file"):
        load_images([Path("gone.png")])


def test_full_memory_is_not_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("cifar_lit.data.decoding.to_rgb", full)
    with pytest.raises(MemoryError):
        read_image(saved(Image.new("L", (9, 9)), "PNG"))


def test_each_way_to_become_square_by_value() -> None:
    """Three colours side by side: all of them, the middle one, or all of them between black bars."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    wide = np.concatenate([np.full((10, 10, 3), colour, np.uint8) for colour in colours], axis=1)
    assert np.array_equal(fit_image(Image.fromarray(wide), 30, "squash"), wide[[0] * 30])
    assert np.array_equal(fit_image(Image.fromarray(wide), 10, "crop"), wide[:, 10:20])
    padded = fit_image(Image.fromarray(wide), 30, "pad")
    assert np.array_equal(padded[10:20], wide)
    assert not padded[:10].any()
    assert not padded[20:].any()
    tall = fit_image(Image.fromarray(wide.transpose(1, 0, 2)), 30, "pad")
    assert np.array_equal(tall, padded.transpose(1, 0, 2))


@pytest.mark.parametrize("how", get_args(Resize))
@pytest.mark.parametrize("shape", [(20, 900), (48, 48), (31, 29), (7, 5)])
def test_any_shape_becomes_square(how: Resize, shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert fit_image(image, 48, how).shape == (48, 48, 3)
    if shape == (48, 48):
        assert np.array_equal(fit_image(image, 48, how), np.asarray(image))
