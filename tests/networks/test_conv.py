"""The network between the tutorial's and the fast one: it is each of them at an end."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from cifar_lit.errors import UserError
from cifar_lit.networks import ConvNet, FastCNN, TutorialCNN

FAST: dict[str, Any] = {
    "widths": [64, 256, 256],
    "kernel_size": 3,
    "num_convs": 2,
    "activation": "gelu",
    "norm": "shift",
    "head": "pooled",
    "whiten": True,
    "identity": True,
}


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_by_default_it_is_the_tutorials_network() -> None:
    torch.manual_seed(0)
    tutorial = TutorialCNN()
    torch.manual_seed(0)
    net, images = ConvNet(), torch.rand(3, 3, 32, 32)
    assert num_parameters(net) == 145_578
    pairs = zip(net.state_dict().values(), tutorial.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert torch.equal(net(images), tutorial(images))


def test_with_the_last_settings_it_is_the_fast_network() -> None:
    torch.manual_seed(0)
    fast, net = FastCNN(), ConvNet(**FAST)
    fast.prepare(torch.rand(20, 3, 32, 32))
    assert num_parameters(net) == num_parameters(fast)
    trained = [sum(one.numel() for one in of.parameters() if one.requires_grad) for of in (net, fast)]
    assert trained[0] == trained[1]
    names = {"whiten": "stem.1", "head": "head.1"}
    for i in (1, 2, 3):
        names |= {f"stages.stage{i}.convs.{j}": f"blocks.block{i}.{(0, 4)[j]}" for j in (0, 1)}
        names |= {f"stages.stage{i}.norms.{j}": f"blocks.block{i}.{(2, 5)[j]}" for j in (0, 1)}
    weights = {re.sub(r"(.*)\.(\w+)", lambda m: f"{names[m[1]]}.{m[2]}", k): v for k, v in fast.state_dict().items()}
    net.load_state_dict(weights)
    for size in (32, 18):
        images = torch.randn(4, 3, size, size)
        with torch.no_grad():
            assert torch.equal(net(images), fast(images))
    assert torch.equal(net.blocks[0][2].running_var, fast.stages[0].norms[0].running_var)  # type: ignore[index,union-attr]


def test_it_begins_as_the_fast_network_does() -> None:
    net = ConvNet(**FAST)
    net.prepare(torch.rand(20, 3, 32, 32))
    assert float(net.stem[1].weight.std()) > 0  # type: ignore[operator]
    images = torch.rand(2, 24, 8, 8)
    assert torch.equal(net.blocks[0][0](images)[:, :24], images)  # type: ignore[index]


def test_blocks_may_differ_in_depth() -> None:
    net = ConvNet(widths=[4, 8], num_convs=[1, 3])
    depths = [sum(isinstance(layer, nn.Conv2d) for layer in block.modules()) for block in net.blocks]
    assert depths == [1, 3]
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kernel_size": 4}, "`kernel_size` is 4: must be one of 3, 5, 7"),
        ({"activation": "tanh"}, "`activation` is tanh: must be one of none, relu, gelu"),
        ({"norm": "layer"}, "`norm` is layer: must be one of none, batch, shift"),
        ({"head": "none"}, "`head` is none: must be one of linear, pooled"),
        ({"widths": [4096] * 5, "num_convs": 64}, "parameters, and at most 500,000,000 are built"),
        ({"num_convs": 0}, "`num_convs` is 0"),
        ({"num_convs": [1, 1]}, "for each of the 3 `widths`"),
    ],
)
def test_options_are_checked_before_anything_is_built(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        ConvNet(**options)
