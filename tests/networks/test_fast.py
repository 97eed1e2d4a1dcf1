"""The fast network: its sizes, its first layer, and that it learns."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifar_lit.errors import UserError
from cifar_lit.networks import FastCNN, StrongCNN
from cifar_lit.networks.fast import HEAD_SCALE, HEAD_STD, Stage
from tests.helpers.networks import overfit


def test_each_stage_halves_the_image() -> None:
    net = FastCNN(10, widths=[64, 96, 128])
    sizes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda *args: sizes.append(tuple(args[2].shape[1:])))
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(64, 16, 16), (96, 8, 8), (128, 4, 4)]


def test_a_third_convolution_is_a_residual() -> None:
    net = FastCNN(10, widths=[8, 8, 8], num_convs=3)
    stage = net.stages[0].eval()
    assert isinstance(stage, Stage)
    nn.init.zeros_(stage.convs[2].weight)  # type: ignore[arg-type]
    images = torch.randn(2, 24, 32, 32)
    first = F.gelu(F.max_pool2d(stage.convs[0](images), 2))  # fresh norms in evaluation change nothing
    assert torch.allclose(stage(images), F.gelu(first), atol=1e-5)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_stages_may_differ_in_depth() -> None:
    net = FastCNN(10, widths=[8, 8, 12], num_convs=[1, 2, 3])
    assert [len(stage.convs) for stage in net.stages] == [1, 2, 3]  # type: ignore[arg-type]
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    same = FastCNN(10, widths=[8, 8, 12], num_convs=[2, 2, 2]).state_dict()
    assert list(same) == list(FastCNN(10, widths=[8, 8, 12]).state_dict())


def test_the_first_filters_of_a_stage_are_the_identity() -> None:
    for conv, num_in in zip(Stage(8, 12, 2).convs, (8, 12), strict=True):
        images = torch.randn(2, num_in, 6, 6)
        assert torch.equal(conv(images)[:, :num_in], images)


@pytest.mark.parametrize("size", [8, 16, 24, 30, 32])
def test_images_of_other_sizes_are_taken(size: int) -> None:
    assert FastCNN(7, widths=[8, 8, 8])(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_the_first_layer_whitens_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(200, 3, 16, 16, generator=generator), size=(32, 32), mode="bilinear")
    net = FastCNN(10)
    net.prepare(images)
    patches = F.conv2d(images, net.whiten.weight[:12], stride=2).permute(1, 0, 2, 3).flatten(1)
    covariance = patches @ patches.T / patches.shape[1]
    off_diagonal = covariance - torch.diag(torch.diag(covariance))
    assert float(off_diagonal.abs().max()) < 1e-3
    assert bool((torch.diag(covariance) > 0.5).all())
    assert bool((torch.diag(covariance) < 1.01).all())
    assert torch.equal(net.whiten.weight[12:], -net.whiten.weight[:12])


def test_what_is_trained_and_what_is_not() -> None:
    net = FastCNN(10, widths=[8, 8, 8])
    net(torch.randn(16, 3, 16, 16)).square().sum().backward()
    for name, parameter in net.named_parameters():
        frozen = name.endswith("weight") and ("whiten" in name or "norm" in name)
        assert parameter.requires_grad is not frozen, name
        assert frozen or (parameter.grad is not None and float(parameter.grad.abs().sum()) > 0), name


def test_the_last_layer_learns_as_fast_as_the_source_says() -> None:
    # Spread times scale is the source's 1 x 1; the rate times scale squared is its 12.6 times the biases' rate.
    assert pytest.approx(1, rel=0.02) == HEAD_STD * HEAD_SCALE
    assert pytest.approx(0.67 / 0.053, rel=0.05) == HEAD_SCALE**2
    assert float(FastCNN(10).head.weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.05)


def test_it_overfits_32_images() -> None:
    assert overfit(lambda: FastCNN(10, widths=[16, 32, 32]), size=16, lr=1.0, num_steps=40) > 0.95


@pytest.mark.parametrize("net", [FastCNN, StrongCNN])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_convs": 10**9}, "`num_convs` is 1000000000: must be a whole number from 1 to 64"),
        ({"num_convs": 0}, "`num_convs` is 0"),
        ({"num_convs": -1}, "`num_convs` is -1"),
        ({"num_convs": 1.5}, "`num_convs` is 1.5"),
        ({"num_convs": [2, 3]}, r"`num_convs` is \[2, 3\]: must be .* for each of the 3 `widths`"),
        ({"num_convs": [2, 0, 3]}, "`num_convs` is"),
        ({"num_convs": [2, 2.5, 3]}, "`num_convs` is"),
        ({"num_convs": [2] * 10**4}, "`num_convs` is"),
        ({"widths": [1024, 4096], "num_convs": [1, 5]}, "makes 641,949,696 parameters"),
        ({"widths": []}, r"`widths` is \[\]: must be one to five whole numbers from 1 to 4096"),
        ({"widths": [8] * 6}, "`widths` is"),
        ({"widths": [8] * 10**4}, "`widths` is .* must be one to five"),
        ({"widths": [10**9]}, "`widths` is"),
        ({"widths": [8, 0]}, "`widths` is"),
        ({"widths": [8, -8]}, "`widths` is"),
        ({"widths": [8.5]}, "`widths` is"),
        ({"widths": ["8"]}, "`widths` is"),
        ({"widths": 8}, "`widths` is 8"),
        ({"widths": [4096] * 5, "num_convs": 64}, "makes 48,168,271,872 parameters, and at most 500,000,000 are built"),
    ],
)
def test_sizes_are_checked_before_anything_is_built(net: Any, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        net(10, **options)
    assert len(str(error.value)) < 300
