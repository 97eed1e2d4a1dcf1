"""The augmentations against a plain loop over images, and the randomness of their parameters."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import ToTensor

from cifar_lit.commands.ladder import step_setting
from cifar_lit.commands.setting import Setting
from cifar_lit.data.augment import (
    Augmentation,
    AugmentParams,
    crop,
    flip,
    generator_for,
    pad,
    resize,
    size_of_epoch,
    to_float,
)
from cifar_lit.errors import UserError


@pytest.fixture
def images() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (12, 9, 11, 3), dtype=np.uint8))


def test_padding_mirrors_at_the_edge_pixel(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.data.augment.CHUNK", 3)  # images that are padded together, so that some are left
    expected = np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    assert np.array_equal(pad(images, 4).numpy(), expected)


def test_each_image_is_cropped_from_its_own_corner() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (7, 12, 14, 3), dtype=np.uint8))
    index = torch.tensor([6, 0, 0, 3, 6])
    corners = torch.tensor([[4, 6], [0, 0], [4, 0], [1, 5], [2, 3]])
    result = crop(images, index, corners, 8)
    for i, (row, column) in enumerate(corners.tolist()):
        assert torch.equal(result[i], images[index[i], row : row + 8, column : column + 8])


def test_flipping_mirrors_those_that_are_named_and_twice_is_the_identity(images: Tensor) -> None:
    flips = torch.arange(12) % 2
    once = flip(images, flips)
    for i in range(12):
        assert torch.equal(once[i], images[i].flip(1) if i % 2 else images[i])
    assert torch.equal(flip(once, flips), images)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_paints_one_square_in_each_image(images: Tensor, size: int) -> None:
    images = images[:, :, :9]
    holes = torch.stack((torch.arange(12) % 9, torch.arange(12) % 8), dim=1)
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8)
    result = Augmentation(cutout=size).apply(images, AugmentParams(holes=holes), colour)
    for i, (row, column) in enumerate(holes.tolist()):
        expected = images[i].clone()
        top, left = row - size // 2, column - size // 2
        expected[max(0, top) : top + size, max(0, left) : left + size] = colour
        assert torch.equal(result[i], expected)


def test_bytes_become_what_totensor_makes_of_them() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
    expected = torch.stack([ToTensor()(image.permute(1, 2, 0).numpy()) for image in images])
    result = to_float(images)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_floats_are_bytes_that_were_converted_and_other_types_are_refused() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        floats = torch.rand(2, 3, 4, 4).to(dtype)
        assert to_float(floats) is floats
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(UserError, match=f"`images` has the dtype {dtype}: must be uint8"):
            to_float(torch.zeros(2, 3, 4, 4, dtype=dtype))


def test_resizing_keeps_a_flat_image_flat_and_does_nothing_at_the_same_size() -> None:
    flat = torch.full((2, 3, 32, 32), 0.3)
    assert torch.allclose(resize(flat, 24), torch.full((2, 3, 24, 24), 0.3))
    assert resize(flat, 32) is flat
    halved = resize(torch.arange(32.0).expand(1, 3, 32, 32), 16)
    assert torch.allclose(halved[0, 0, 0, 1:-1], torch.arange(16.0)[1:-1] * 2 + 0.5)


def test_a_generator_depends_on_its_key_alone() -> None:
    torch.manual_seed(3)
    first = torch.rand(4, generator=generator_for(1, 2))
    torch.manual_seed(4)
    assert torch.equal(first, torch.rand(4, generator=generator_for(1, 2)))
    for other in ((2, 1), (1, 2, 1), (1, 2, 2), (1,)):
        assert not torch.equal(first, torch.rand(4, generator=generator_for(*other)))


def test_parameters_are_a_function_of_seed_and_epoch_and_cover_their_ranges() -> None:
    how = Augmentation(crop_padding=2, flip="random", cutout=8)
    params = how.sample(2000, 32, seed=1, epoch=2)
    again = how.sample(2000, 32, seed=1, epoch=2)
    others = [how.sample(2000, 32, seed=seed, epoch=epoch) for seed, epoch in ((1, 3), (2, 2))]
    for i, part in enumerate(params[:3]):
        assert part is not None
        assert torch.equal(part, again[i])  # type: ignore[arg-type]
        assert not any(torch.equal(part, other[i]) for other in others)  # type: ignore[arg-type]
    assert params.corners is not None
    assert params.flips is not None
    assert params.holes is not None
    assert torch.bincount(params.corners.flatten()).tolist() == pytest.approx([800] * 5, rel=0.15)
    assert float(params.flips.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert (int(params.holes.min()), int(params.holes.max())) == (0, 31)


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs() -> None:
    how = Augmentation(flip="alternating")
    epochs = [how.sample(1000, 32, seed=5, epoch=epoch).flips for epoch in range(3)]
    assert all(flips is not None for flips in epochs)
    first, second, third = (flips for flips in epochs if flips is not None)
    assert torch.equal(first + second, torch.ones(1000, dtype=torch.int64))
    assert torch.equal(first, third)
    assert 400 < int(first.sum()) < 600


def test_without_augmentation_nothing_is_sampled() -> None:
    assert Augmentation().sample(10, 32, seed=0, epoch=0) == (None,) * len(AugmentParams._fields)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Setting("", ["--recipe=fast"]), [24, 24, 24, 24, 24, 32, 32, 32]),
        (Setting("", ["--recipe=fast10"]), [16, 20, 20, 24, 24, 32]),
        (step_setting(15, ["--trainer.max_epochs=8"]), [16, 20, 24, 32, 32, 32, 32, 32]),
        (Setting("", ["--recipe=fast10", "--trainer.max_epochs=3"]), [20, 24, 32]),
        (Setting("", ["--recipe=fast10", "--trainer.max_epochs=1"]), [32]),
        (Setting("", ["--recipe=fast10", "--trainer.max_epochs=8"]), [16, 20, 20, 24, 24, 32, 32, 32]),
        (step_setting(15, ["--trainer.max_epochs=3"]), [16, 20, 32]),
    ],
)
def test_image_sizes_follow_the_number_of_epochs(setting: Setting, expected: list[int]) -> None:
    sizes, max_epochs = setting.values["data.image_sizes"], setting.values["trainer.max_epochs"]
    assert [size_of_epoch(sizes, epoch, max_epochs) for epoch in range(max_epochs)] == expected


def test_a_training_of_any_length_ends_at_the_last_size_and_never_shrinks_growing_ones() -> None:
    sizes = [8, 9, 10, 11, 12, 13, 14]
    for max_epochs in range(1, 12):
        chosen = [size_of_epoch(sizes, epoch, max_epochs) for epoch in range(max_epochs)]
        assert chosen[-1] == 14
        assert chosen == sorted(chosen)
    for unknown in (None, -1):  # with max_steps or max_time alone
        assert [size_of_epoch(sizes, epoch, unknown) for epoch in range(9)] == [*sizes, 14, 14]
