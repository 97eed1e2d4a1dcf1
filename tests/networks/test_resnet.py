"""ResNet-18 and WideResNet: the papers' counts, torchvision's logits, and that they learn."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cifar_lit.errors import UserError
from cifar_lit.networks import Network, ResNet18, TorchvisionNet, WideResNet
from cifar_lit.networks.winograd import Conv3x3
from tests.helpers.networks import overfit


def count(net: Network) -> tuple[int, float]:
    """Count the parameters of a network on the meta device, and the multiplications for an image of 32x32, in G."""
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    return sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() / 2e9


def test_resnet18_has_the_size_of_the_public_baselines() -> None:
    with torch.device("meta"):
        num_parameters, products = count(ResNet18(10))
        assert num_parameters == 11_173_962
        assert products == pytest.approx(0.56, abs=0.005)
        assert count(ResNet18(100))[0] == 11_173_962 + 90 * 513


@pytest.mark.parametrize(
    ("depth", "widen_factor", "millions"),
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (28, 10, 36.5), (22, 8, 17.2), (16, 10, 17.1)],
)
def test_wide_resnets_have_the_parameters_of_the_paper(depth: int, widen_factor: int, millions: float) -> None:
    # Table 4 of arXiv 1605.07146.
    with torch.device("meta"):
        num_parameters, _ = count(WideResNet(10, depth=depth, widen_factor=widen_factor))
    assert num_parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_default_is_wrn_28_10() -> None:
    with torch.device("meta"):
        num_parameters, products = count(WideResNet(10))
    assert num_parameters == 36_479_194
    assert 5.2 < products < 5.25


def test_resnet18_computes_what_torchvisions_computes() -> None:
    torch.manual_seed(0)
    ours, theirs = ResNet18(10), TorchvisionNet(10, name="resnet18", small_stem=True)
    theirs.model.load_state_dict(ours.state_dict())  # the same names and shapes
    images = torch.randn(4, 3, 16, 16)
    logits = ours(images)
    assert (
        sum(
            "Winograd" in str(type(one.forward(torch.zeros(1, one.in_channels, 4, 4)).grad_fn))
            for one in ours.modules()
            if isinstance(one, Conv3x3)
        )
        == 9
    )
    assert torch.allclose(logits, theirs(images), atol=1e-4)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-4)
    deviation = float(ours.layer1[0].conv2.weight.detach().std())  # type: ignore[index,union-attr]
    assert deviation == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)  # He et al.


SMALL = [lambda: ResNet18(10, width=8), lambda: WideResNet(10, depth=10, widen_factor=1)]


@pytest.mark.parametrize("net", SMALL)
@pytest.mark.parametrize("size", [8, 27, 32])
def test_gradients_reach_every_parameter_at_any_size(net: type[Network], size: int) -> None:
    network = net()
    network(torch.randn(4, 3, size, size)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("net", SMALL)
def test_it_overfits_32_images(net: type[Network]) -> None:
    assert overfit(net, size=8, lr=0.05, num_steps=15) > 0.95


def test_other_sizes_are_refused_before_anything_is_built() -> None:
    for depth in (0, 27, 12, 106, 10**9):
        with pytest.raises(UserError, match=f"`depth` is {depth}: must be a multiple of 6 plus 4, from 10 to 100"):
            WideResNet(10, depth=depth)
    for factor in (0, -1, 17):
        with pytest.raises(UserError, match=f"`widen_factor` is {factor}: must be from 1 to 16"):
            WideResNet(10, widen_factor=factor)
    for width in (0, 4, 12, 520):
        with pytest.raises(UserError, match=f"`width` is {width}: must be a multiple of 8, from 8 to 512"):
            ResNet18(10, width=width)
