"""Pooling that keeps little for the backward pass: the values and gradients of torch's."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cifar_lit.networks import FastCNN
from cifar_lit.networks.pooling import max_pool


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (2, 4, 7, 5), (0, 3, 4, 4), (1, 1, 2, 3), (1, 2, 182, 182)])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    images = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    if images.numel():
        images[0, 0, :2, :2] = 1  # of equal maxima, the same one
    first, second = (images.clone().requires_grad_() for _ in range(2))
    values, expected = max_pool(first), F.max_pool2d(second, 2)
    assert torch.equal(values, expected)
    assert values.stride() == expected.stride()
    gradient = torch.randn_like(expected)
    for one in (values, expected):
        one.backward(gradient)  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(first.grad, second.grad)


def test_the_places_alone_are_kept() -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        max_pool(torch.randn(4, 8, 16, 16, requires_grad=True) * 2)
    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [(torch.int16, 4 * 8 * 8 * 8)]


def test_a_second_derivative_is_that_of_torch() -> None:
    def second(pool: Any) -> torch.Tensor:
        images = torch.arange(32.0).view(1, 2, 4, 4).sin().requires_grad_()
        (gradient,) = torch.autograd.grad(pool(images).square().sum(), images, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), images)[0]

    assert torch.allclose(second(max_pool), second(lambda images: F.max_pool2d(images, 2)))


def test_a_network_has_the_same_gradients_as_with_torchs_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    images, gradients = torch.rand(4, 3, 16, 16), []
    for pool in (max_pool, lambda features: F.max_pool2d(features, 2)):
        monkeypatch.setattr("cifar_lit.networks.fast.max_pool", pool)
        torch.manual_seed(0)
        net = FastCNN(widths=[8, 8])
        net(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 3
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
