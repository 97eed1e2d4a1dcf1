"""Images in two splits, or in two classes."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from cifar_lit.data import Split
from cifar_lit.data.cache import _checksum
from cifar_lit.data.duplicates import find_copies
from cifar_lit.data.listing import say
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.evaluation.score import describe
from cifar_lit.module import ImageClassifier
from tests.helpers.images import encode, tiny_files, write_files


def photo(number: int, size: int = 32) -> Image.Image:
    """Make an image that is smooth, as a photo is."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def split_of(images: list[Image.Image], labels: list[int] | None = None) -> Split:
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    return Split(pixels, torch.tensor(labels or [0] * len(images)))


def saved_again(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, ".jpg"))).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": saved_again,
    "resized": lambda image: image.resize((24, 24)).resize((32, 32)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less colour": lambda image: ImageEnhance.Color(image).enhance(0.7),
}


def test_exact_and_near_copies_are_found_and_no_others() -> None:
    others = split_of([photo(number) for number in range(200)])
    changed = [change(photo(number)) for number, change in enumerate(CHANGES.values())]
    found = find_copies(split_of([photo(50), *changed, *(photo(number) for number in range(300, 400))]), others)
    assert found.exact.nonzero().flatten().tolist() == [0]
    assert found.near.nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert not found.relabelled.any()


def test_where_all_images_are_alike_a_near_copy_must_be_nearer() -> None:
    def alike(number: int) -> Image.Image:
        return Image.blend(photo(0), photo(number), 0.3)

    others = split_of([alike(number) for number in range(1, 100)])
    images = [CHANGES["brighter"](alike(5)), *(alike(number) for number in range(200, 300))]
    assert find_copies(split_of(images), others).near.nonzero().flatten().tolist() == [0]


def test_uniform_images_are_only_exact_copies() -> None:
    grey, black = (Image.new("RGB", (32, 32), colour) for colour in ("grey", "black"))
    found = find_copies(split_of([grey, black]), split_of([black, photo(0)]))
    assert (found.exact.tolist(), found.near.tolist()) == ([False, True], [False, False])


def test_an_image_in_two_classes_is_found_within_a_split_and_in_another() -> None:
    split = split_of([photo(0), photo(0), photo(1), photo(2), saved_again(photo(3))], [0, 1, 0, 0, 0])
    others = split_of([photo(1), photo(2), photo(3), photo(4)], [0, 1, 1, 0])
    assert find_copies(split, others).relabelled.tolist() == [True, True, False, True, True]
    assert find_copies(split).relabelled.tolist() == [True, True, False, False, False]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return images with a copy of each kind: of validation, of test (saved again), and in two classes."""
    say.cache_clear()
    files = tiny_files() | {
        f"val/{name}/1.png": encode(photo(8 + i), ".png") for i, name in enumerate(("bright", "dark", "green"))
    }
    files["train/dark/val.png"] = files["val/dark/1.png"]
    files["train/dark/test.png"], files["test/dark/test.jpg"] = (
        encode(photo(7, 64), suffix) for suffix in (".png", ".jpg")
    )
    files["train/dark/two.png"] = files["train/green/two.png"] = encode(photo(6), ".png")
    return write_files(tmp_path / "copies", files)


def load(root: Path, **options: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(source="images", root=str(root), batch_size=8, **options)
    data.setup("fit")
    data.setup("test")
    return data


def test_copies_of_own_images_are_counted_in_a_line_and_in_the_results(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(root)
    assert data.train is not None
    assert len(data.train.labels) == 64
    train = "of 64 training images 1 is in validation, too (1 exactly) and 2 have a copy in another class (dark, green)"
    test = "of 25 test images 1 is in training or validation, too (0 exactly)"
    train += "; --data.duplicates drop leaves them out"
    train += ", as train/dark/two.png = train/green/two.png, train/dark/val.png = val/dark/1.png"
    test += ", as test/dark/test.jpg ~ train/dark/test.png"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("of ")]
    assert lines == [train, test]
    results = describe(ImageClassifier(classes=data.classes), data, {})
    assert results.duplicates == f"{lines[0]}; {test}"


def test_copies_are_dropped_from_training_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load(root, duplicates="drop")
    assert (data.train and len(data.train.labels), data.val and len(data.val.labels)) == (60, 3)
    assert data.test is not None
    assert len(data.test.labels) == 25
    err = capsys.readouterr().err
    assert "of 64 training images 2 are in validation or test, too (1 exactly) and 2 have a copy in another" in err
    assert "green): left out, as train/dark/" in err
    assert data.copies["test"] == ""
    again = load(root, duplicates="drop")
    assert again.fingerprints == data.fingerprints  # so that a run resumes


@pytest.mark.parametrize("has_val", [True, False])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_copies_in_two_classes_of_validation_are_counted_and_stay(
    has_val: bool, duplicates: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say.cache_clear()
    parts = {"train": range(20), "val": range(20, 23)} if has_val else {"train": range(23)}
    files = {
        f"{split}/{name}/{number}.png": encode(photo(100 * i + number), ".png")
        for split, numbers in ({**parts, "test": range(30, 33)}).items()
        for i, name in enumerate(("cat", "dog"))
        for number in numbers
    }
    before = load(write_files(tmp_path / "before", files), duplicates=duplicates, val_size=0.2)
    assert before.val is not None
    assert before.copies["val"] == ""
    # A copy, in the other class, of an image that is held out.
    pixels = {name: torch.from_numpy(np.array(Image.open(io.BytesIO(data)))) for name, data in files.items()}
    held_out = next(n for n in files if "/cat/" in n and (pixels[n] == before.val.images).flatten(1).all(1).any())
    copy = held_out.replace("/cat/", "/dog/copy")
    data = load(write_files(tmp_path / "copies", files | {copy: files[held_out]}), duplicates=duplicates, val_size=0.2)
    assert data.val is not None
    number = len(before.val.labels) + 1
    assert len(data.val.labels) == number
    line = f"of {number} validation images 2 have a copy in another class (cat, dog), as {held_out} = {copy}"
    assert data.copies["val"] == line
    assert line in capsys.readouterr().err
    assert line in str(describe(ImageClassifier(classes=data.classes), data, {}).duplicates)


@pytest.mark.parametrize("options", [{"val_size": 3}, {"val_size": 3, "image_size": 40}], ids=str)
def test_copies_are_named_ten_of_them_in_the_results_and_two_in_the_line(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say.cache_clear()
    name = "a" * 60
    files = {  # without a test folder
        f"{one}/{name}{number}.png": encode(photo(number), ".png") for one in ("dark", "green") for number in range(30)
    }
    files |= {f"bright/{number}.png": encode(photo(number), ".png") for number in range(30, 60)}
    data = load(write_files(tmp_path / "copies", files), **options)
    assert data.copies["train"] is not None
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " training images " in line)
    pairs = data.copies["train"].partition(", as ")[2].split(", ")
    assert len(pairs) == 10
    assert line.partition(", as ")[2].split(", ") == pairs[:2]
    assert re.fullmatch(r"dark/a{15}\.{3}(a+\d+\.png) = green/a{14}\.{3}\1", pairs[0])
    assert len(pairs[0]) == 50 + 3 + 50


def test_an_older_cache_names_no_file(root: Path) -> None:
    load(root)
    for path in (Path.home() / ".cache/cifar_lit").rglob("*.pt"):
        entry = torch.load(path, weights_only=True)
        if entry.pop("names", None):
            torch.save({**entry, "checksum": _checksum({k: v for k, v in entry.items() if k != "checksum"})}, path)
    assert {text.partition(", as ")[2] for text in load(root).copies.values() if text} == {""}


def test_no_class_is_left_empty(tmp_path: Path) -> None:
    files = tiny_files()
    files |= {
        f"val/{name.removeprefix('train/')}": data for name, data in files.items() if name.startswith("train/dark")
    }
    files |= {f"val/{name}/own.png": encode(photo(1 + len(name)), ".png") for name in ("bright", "green")}
    with pytest.raises(UserError, match="`duplicates` drop leaves dark without training images: give keep"):
        load(write_files(tmp_path / "copies", files), duplicates="drop")


def test_copies_are_sought_in_other_sources_only_to_drop_them() -> None:
    data = CIFAR10DataModule(source="synthetic")
    data.source.num_train = data.source.num_test = 400  # type: ignore[attr-defined]
    data.hparams["val_size"] = 50
    data.setup("fit")
    data.setup("test")
    assert set(data.copies.values()) == {None}
    assert describe(ImageClassifier(classes=data.classes), data, {}).duplicates is None
    with pytest.raises(UserError, match="`duplicates` is maybe: must be one of keep, drop"):
        CIFAR10DataModule(source="synthetic", duplicates="maybe")  # type: ignore[arg-type]
