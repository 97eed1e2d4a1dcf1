"""Winograd's convolution against torch's."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifar_lit.networks.winograd import Conv3x3, Tiling, WinogradConvolution, tile_size, transforms


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_transforms_compute_a_correlation_exactly(m: int) -> None:
    by = transforms(m)
    rng = np.random.default_rng(m)
    patch, filters = rng.integers(-4, 5, (m + 2, m + 2)), rng.integers(-4, 5, (3, 3))
    expected = [[(patch[i : i + 3, j : j + 3] * filters).sum() for j in range(m)] for i in range(m)]
    transformed = (by.patches @ torch.from_numpy(patch.flatten()).float()) * (
        by.filters @ torch.from_numpy(filters.flatten()).float()
    )
    assert (by.outputs @ transformed).view(m, m).numpy() == pytest.approx(np.array(expected), abs=1e-3)


@pytest.mark.parametrize("num_together", [3, 2, 1])  # images that are computed together; there are three
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (6, 6), (3, 3), (2, 2), (5, 7), (1, 1), (10, 4)])
def test_output_and_gradients_are_those_of_torch(
    height: int, width: int, num_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, rows, columns, m = Tiling.of(height, width)
    monkeypatch.setattr("cifar_lit.networks.winograd.PART", num_together * rows * columns * (m + 2) ** 2 * 7)
    generator = torch.Generator().manual_seed(height * width)
    images = torch.randn(3, 5, height, width, generator=generator).requires_grad_()
    filters = torch.randn(7, 5, 3, 3, generator=generator).requires_grad_()
    towards = torch.randn(3, 7, height, width, generator=generator)
    ours = WinogradConvolution.apply(images, filters)
    theirs = F.conv2d(images, filters, padding=1)
    assert ours.shape == theirs.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 1e-5
    for a, b in zip(
        torch.autograd.grad(ours, (images, filters), towards),
        torch.autograd.grad(theirs, (images, filters), towards),
        strict=True,
    ):
        assert a.shape == b.shape
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_the_tile_is_the_one_with_the_fewest_products() -> None:
    assert [tile_size(size, size) for size in (16, 12, 8, 6, 4, 3, 2)] == [4, 4, 4, 3, 4, 3, 2]


def test_the_layer_is_torchs_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    layer = Conv3x3(64, 96)
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(64, 96, 3, padding=1, bias=False)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(layer.weight, plain.weight)
    images = torch.randn(2, 64, 8, 8)
    assert "Winograd" in type(layer(images).grad_fn).__name__
    assert torch.allclose(layer(images), plain(images), atol=1e-4)
    with torch.no_grad():
        assert torch.equal(layer(images), plain(images))


def test_few_channels_and_other_types_take_torchs_convolution() -> None:
    assert "Winograd" not in type(Conv3x3(3, 64)(torch.randn(1, 3, 8, 8)).grad_fn).__name__
    double = Conv3x3(64, 64).double()(torch.randn(1, 64, 8, 8, dtype=torch.float64))
    assert double.dtype == torch.float64


def kernel_of(layer: Conv3x3, size: int) -> str:
    images = torch.randn(1, layer.in_channels, size, size)
    return "winograd" if "Winograd" in type(layer(images).grad_fn).__name__ else "direct"


def test_the_kernel_is_the_one_that_is_given_for_the_shape() -> None:
    layer, small = Conv3x3(64, 96), Conv3x3(8, 8)
    for kernels, expected in (
        ("winograd", ["winograd", "winograd", "direct"]),
        ("auto", ["winograd", "winograd", "direct"]),  # nothing was measured
        ("direct", ["direct", "direct", "direct"]),
        ({"64x96@8": "direct", "64x96@6": "winograd", "8x8@8": "winograd"}, ["direct", "winograd", "winograd"]),
        ({"96x64@8": "direct"}, ["winograd", "winograd", "direct"]),
    ):
        layer.kernels = small.kernels = kernels  # type: ignore[assignment]
        assert [kernel_of(layer, 8), kernel_of(layer, 6), kernel_of(small, 8)] == expected


@pytest.mark.parametrize("of_images", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 8, 6, 4, 3, 2])
def test_under_autocast_it_computes_in_bfloat16_if_it_is_named(size: int, of_images: torch.dtype) -> None:
    torch.manual_seed(size)
    layer = Conv3x3(64, 96)
    layer.kernels = {layer.shape_at(size): "winograd"}
    images = torch.randn(4, 64, size, size).to(of_images).requires_grad_()
    towards = torch.randn(4, 96, size, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = layer(images)
    assert "Winograd" in type(ours.grad_fn).__name__
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous(memory_format=torch.channels_last)
    exact = images.detach().float().requires_grad_()
    theirs = F.conv2d(exact, layer.weight, padding=1)
    assert relative(ours, theirs) < 0.03
    gradients = torch.autograd.grad(ours, (images, layer.weight), towards.bfloat16())
    assert [gradient.dtype for gradient in gradients] == [of_images, torch.float32]
    for a, b in zip(gradients, torch.autograd.grad(theirs, (exact, layer.weight), towards), strict=True):
        assert 1e-4 < relative(a, b) < 0.03


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).detach().norm() / theirs.detach().norm())


def test_otherwise_under_autocast_the_librarys_convolution_takes_over() -> None:
    layer, images = Conv3x3(64, 64), torch.randn(2, 64, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "Winograd" not in type(layer(images).grad_fn).__name__
    layer.kernels = {"64x64@8": "winograd"}
    with torch.autocast("cpu", dtype=torch.float16):
        assert "Winograd" not in type(layer(images).grad_fn).__name__
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "Winograd" not in type(layer.bfloat16()(images).grad_fn).__name__


@pytest.mark.parametrize(
    ("num_images", "height", "sizes"),
    [
        (500, 16, [250, 250]),
        (500, 12, [500]),
        (1001, 16, [251, 251, 251, 248]),
        (3, 16, [3]),
        (2000, 8, [1000, 1000]),
        (0, 8, []),
    ],
)
def test_a_batch_is_computed_in_equal_parts_of_limited_size(num_images: int, height: int, sizes: list[int]) -> None:
    parts = Tiling.of(height, height).parts(num_images, 256)
    assert [len(range(num_images)[part]) for part in parts] == sizes
    assert [i for part in parts for i in range(num_images)[part]] == list(range(num_images))


@pytest.mark.parametrize("num_images", [5, 11, 24, 500])
def test_no_part_is_larger_than_the_limit(num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.networks.winograd.PART", 3 * 36 * 7 + 5)  # three images, and not quite four
    sizes = [len(range(num_images)[part]) for part in Tiling.of(4, 4).parts(num_images, 7)]
    assert sum(sizes) == num_images
    assert max(sizes) <= 3


def test_one_image_is_a_part_even_if_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.networks.winograd.PART", 2)
    assert len(Tiling.of(16, 16).parts(3, 256)) == 3
