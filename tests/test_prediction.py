"""Predictions for images of any kind, in evaluation mode, and what is refused."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, TutorialCNN
from cifar_lit.prediction import as_batch
from tests.helpers.trainers import quiet_trainer

CLASSES = ["a", "b", "c"]
BYTES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(BYTES).permute(0, 3, 1, 2)
LARGE = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def module() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(classes=CLASSES)


def modes(module: torch.nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_predict_after_a_fit_is_in_evaluation_mode_and_changes_nothing(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=15, batch_size=8)
    module = ImageClassifier(classes=data.classes, net=functools.partial(FastCNN, widths=(8, 8)))
    quiet_trainer(max_epochs=1, limit_train_batches=2).fit(module, datamodule=data)
    module.net.stages.eval()  # type: ignore[union-attr]
    before, state = modes(module), {name: part.clone() for name, part in module.state_dict().items()}
    assert set(before) == {True, False}
    images = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8)
    probabilities = module.predict(images)
    with pytest.raises(UserError):
        module.predict(images.long())
    assert modes(module) == before
    assert all(torch.equal(part, state[name]) for name, part in module.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(module.eval()(images).softmax(1), probabilities, atol=1e-6)


def test_an_error_in_the_network_leaves_the_modes_as_they_were(module: ImageClassifier) -> None:
    class Broken(TutorialCNN):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            raise KeyError("a bug of the user's")

    broken = ImageClassifier(classes=CLASSES)
    broken.net = Broken(3)
    broken.net.layers.eval()
    before = modes(broken)
    with pytest.raises(KeyError, match="a bug"):
        broken.predict(TENSOR)
    assert modes(broken) == before


@pytest.mark.parametrize(
    "images",
    [
        TENSOR,
        TENSOR / 255,
        (TENSOR / 255).double(),
        BYTES,
        BYTES[:, ::-1, ::-1][:, ::-1, ::-1],
        (BYTES / 255).astype(np.float32),
        (BYTES / 255).astype(">f8"),
        TENSOR.numpy(),
        list(BYTES),
        list(TENSOR),
        [Image.fromarray(image) for image in BYTES],
        (BYTES[0], TENSOR[1], Image.fromarray(BYTES[2]), BYTES[3] / 255),
        iter(BYTES),
    ],
    ids=lambda images: type(images).__name__,
)
def test_the_same_images_give_the_same_probabilities_in_any_form(images: Any, module: ImageClassifier) -> None:
    assert torch.allclose(module.predict(images), module.predict(TENSOR), atol=1e-6)


@pytest.mark.parametrize(
    "image", [LARGE, LARGE / 255, LARGE[:, :, 0], LARGE[:, :, :1], np.dstack((LARGE, LARGE[:, :, :1])), TENSOR[0]]
)
def test_one_image_gives_one_row(image: Any, module: ImageClassifier, tmp_path: Path) -> None:
    if isinstance(image, Tensor):
        expected = module.predict(image[None])
    else:
        bytes_ = image if image.dtype == np.uint8 else LARGE
        picture = Image.fromarray(bytes_.squeeze(2) if bytes_.shape[2:] == (1,) else bytes_)
        picture.save(tmp_path / "one.png")
        expected = module.predict([tmp_path / "one.png"])
        for same in (picture, tmp_path / "one.png", str(tmp_path / "one.png")):
            assert torch.equal(module.predict(same), expected)
    assert torch.equal(module.predict(image), expected)
    assert expected.shape == (1, 3)


def test_no_images_give_no_rows(module: ImageClassifier) -> None:
    for nothing in ((), TENSOR[:0], BYTES[:0]):
        assert module.predict(nothing).shape == (0, 3)


VALUES = "must be uint8, or floating point in"


@pytest.mark.parametrize("change", [lambda part: part, lambda part: part.permute(0, 2, 3, 1).numpy(), list])
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (TENSOR.long(), f"`images` has the dtype (torch.)?int64: {VALUES}"),
        (TENSOR.int(), f"`images` has the dtype (torch.)?int32: {VALUES}"),
        (TENSOR > 9, f"`images` has the dtype (torch.)?bool: {VALUES}"),
        (TENSOR.float(), f"`images` has values from 0 to 255: {VALUES}"),
        (TENSOR / 127.5 - 1, f"`images` has values from -1 to 1: {VALUES}"),
        (TENSOR / torch.nan, f"`images` has values from nan to nan: {VALUES}"),
        (TENSOR / 0, f"`images` has values from (nan|inf) to (nan|inf): {VALUES}"),
    ],
)
def test_values_of_another_kind_are_refused(
    images: Tensor, change: Callable[[Tensor], Any], expected: str, module: ImageClassifier
) -> None:
    with pytest.raises(ValueError, match=expected):
        module.predict(change(images))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (None, "`images` has a NoneType: must be a file, a Pillow image, an array or a tensor"),
        (b"bytes", "`images` has a bytes"),
        ({"a": 1}, "`images` has a dict"),
        ([None], "`images` has a NoneType"),
        (np.float32(0), "`images` has a float32"),
        (np.zeros(7), "`images` has a float64"),
        (BYTES.astype("object"), "`images` has the dtype object"),
        (np.zeros((4, 5, 2), np.uint8), r"an array of the shape \(4, 5, 2\): must be \(height, width, channels\)"),
        (np.zeros((2, 3, 28, 28), np.uint8), r"an array of the shape \(3, 28, 28\)"),
        (np.zeros((0, 5, 3), np.uint8), r"an array of the shape \(0, 5, 3\)"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), r"an array of the shape \(2, 3, 4, 5\)"),
        (torch.zeros(2, 3, 32, 31), r"`images` has the shape \(2, 3, 32, 31\): must be \(N, 3, 32, 32\)"),
        (torch.zeros(2, 32, 32, 3), r"the shape \(2, 32, 32, 3\)"),
        ((torch.zeros(2, 3, 32, 32), torch.zeros(2)), r"the shape \(1, 2, 3, 32, 32\)"),
        (torch.tensor(0.0), r"the shape \(\)"),
    ],
)
def test_images_of_another_kind_or_shape_are_refused(images: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        as_batch(images)


@pytest.mark.parametrize(("option", "value"), [("tta", "all"), ("batch_size", 0), ("batch_size", -1)])
def test_options_of_predict_are_checked(option: str, value: Any, module: ImageClassifier) -> None:
    with pytest.raises(UserError, match=f"`{option}` is {value}: must be"):
        module.predict(TENSOR, **{option: value})
