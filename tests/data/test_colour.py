"""Colour jitter and TrivialAugment against torchvision's functions, one image at a time."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import TrivialAugmentWide
from torchvision.transforms.v2 import functional as tv

from cifar_lit.data.augment import Augmentation
from cifar_lit.data.colour import OPERATIONS, jitter, trivial_augment


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(30, 220, (31, 3, 4, 4), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 255)
    return smooth.byte().permute(0, 2, 3, 1).contiguous()


def test_each_factor_does_what_torchvision_does(images: Tensor) -> None:
    factors = torch.rand(31, 3, generator=torch.Generator().manual_seed(1)) * 2
    factors[0], factors[1], factors[2] = 1, 0, torch.tensor([1, 0, 1])
    result = jitter(images, factors)
    for image, (brightness, contrast, saturation), changed in zip(images, factors.tolist(), result, strict=True):
        expected = image.permute(2, 0, 1) / 255
        expected = tv.adjust_brightness(expected, brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation)
        assert float((changed.permute(2, 0, 1) - expected * 255).abs().max()) <= 0.501
    assert torch.equal(result[0], images[0])


def test_factors_are_uniform_around_1_within_what_is_asked() -> None:
    factors = Augmentation(brightness=0.4, saturation=1.0).sample(20_000, 32, seed=0, epoch=0).factors
    assert factors is not None
    for column, width in enumerate((0.4, 0.0, 1.0)):
        part = factors[:, column]
        assert (float(part.min()), float(part.max())) == pytest.approx((1 - width, 1 + width), abs=0.001)
        assert (float(part.mean()), float(part.std())) == pytest.approx((1, width / 3**0.5), abs=0.02)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_of_trivial_augment_is_that_of_torchvision_at_all_strengths(images: Tensor, name: str) -> None:
    reference = TrivialAugmentWide()
    magnitudes, is_signed = reference._AUGMENTATION_SPACE[name]
    values = magnitudes(31, 32, 32)
    for sign in (1, -1):
        strengths = sign * torch.arange(31) / 30
        operations = torch.stack((torch.full((31,), OPERATIONS.index(name)), strengths), 1)
        result = trivial_augment(images, operations)
        for level, (image, changed) in enumerate(zip(images, result, strict=True)):
            strength = 0.0 if values is None else round(float(values[level]), 4) * (sign if is_signed else 1)
            expected = reference._apply_image_or_video_transform(
                image.permute(2, 0, 1), name, strength, interpolation="nearest", fill={}
            )
            # Of two pixels that are equally near, either is the nearest. Colours are rounded down, and grey before.
            limit = 0 if name in OPERATIONS[1:6] else 2
            apart = (changed.permute(2, 0, 1).int() - expected.int()).abs()
            assert float((apart > limit).float().mean()) <= 0.04, level


def test_all_operations_and_strengths_are_equally_frequent_and_each_image_has_its_own(images: Tensor) -> None:
    operations = Augmentation(trivial_augment=True).sample(31_000, 32, seed=0, epoch=0).operations
    assert operations is not None
    chosen, strength = operations.T
    assert torch.bincount(chosen.long()).tolist() == pytest.approx([31_000 / 14] * 14, rel=0.1)
    levels = (strength * 30).round().long()
    assert torch.bincount(levels.abs()).tolist() == pytest.approx([1000] * 31, rel=0.15)
    assert float((strength > 0).float().mean()) == pytest.approx(15 / 31, abs=0.01)
    rows = operations[:31]
    result = trivial_augment(images, rows)
    for i in range(31):
        assert torch.equal(result[i : i + 1], trivial_augment(images[i : i + 1], rows[i : i + 1]))
