"""How a network is written down and built again."""

import functools

import numpy as np
import pytest
from torch import Tensor, nn

from cifar_lit.networks import Network, build_network, describe_network


class WideNet(Network):
    """A network with an option of its own.

    Args:
        num_classes: How many logits come out.
        width: Channels of its one convolution.
    """

    def __init__(self, num_classes: int, *, width: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.last = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.conv(images).mean((2, 3)))
        return logits


def test_a_network_is_described_in_plain_values() -> None:
    spec = describe_network(functools.partial(WideNet, width=5))
    assert spec == {"class_path": f"{__name__}.WideNet", "init_args": {"width": 5}}
    assert describe_network(spec) == spec
    net = build_network(spec, num_classes=4)
    assert isinstance(net, WideNet)
    assert net.last.weight.shape == (4, 5)


def test_an_option_that_a_checkpoint_could_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--model\.net\.width is .*3.*: give a plain number"):
        describe_network(functools.partial(WideNet, width=np.int64(3)))  # type: ignore[arg-type]


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="give a subclass of"):
        describe_network(nn.Linear)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_path", "expected"),
    [
        ("subprocess.Popen", "is not a subclass of"),
        ("torch.nn.Linear", "is not a subclass of"),
        ("nowhere.Net", "cannot be imported"),
        ("cifar_lit.networks.Nothing", "cannot be imported"),
        ("Net", "cannot be imported"),
    ],
)
def test_a_checkpoint_cannot_have_anything_but_a_network_built(class_path: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build_network({"class_path": class_path, "init_args": {}}, num_classes=2)
