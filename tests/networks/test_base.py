"""The description of a network in a checkpoint, and the network that is built from it."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lit.errors import UserError
from cifar_lit.networks import FastCNN, Network, TutorialCNN, build_network, describe_network
from cifar_lit.networks.base import check_logits, evaluation_mode, lay_out, takes_num_classes
from cifar_lit.networks.finding import import_network
from tests.helpers.networks import WideNet


def test_a_network_is_described_in_plain_values() -> None:
    spec = describe_network(functools.partial(WideNet, width=5))
    assert spec == {"class_path": f"{WideNet.__module__}.WideNet", "init_args": {"width": 5}}
    assert describe_network(spec) == spec
    net = build_network(spec, num_classes=4)
    assert isinstance(net, WideNet)
    assert net.last.weight.shape == (4, 5)


def test_a_tuple_is_described_as_a_list() -> None:
    spec = describe_network(functools.partial(FastCNN, widths=(8, 8)))
    assert spec["init_args"] == {"widths": [8, 8]}


def test_an_option_that_a_checkpoint_could_not_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"`net`: its width is .*3.*: must be a plain number"):
        describe_network(functools.partial(WideNet, width=np.int64(3)))  # type: ignore[arg-type]


class Outer:
    class Inner(nn.Module):
        pass


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Path, "must be a subclass of torch.nn.Module"),
        ({}, "must be a subclass of"),
        ({"class_path": 3, "init_args": {}}, "must be a subclass of"),
        (nn.Linear(3, 3), "`net` is an object of Linear: give the class, .*: net=Linear"),
        (functools.partial(WideNet, 5), "give the options of the network by name, as width=64"),
        (Outer.Inner, "define the class outside of functions and other classes"),
    ],
)
def test_what_is_no_network_is_refused(net: object, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        describe_network(net)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_path", "expected"),
    [
        ("subprocess.Popen", "is not a subclass of"),
        ("torch.nn.Transformer", "is of another package: give `trust`"),
        ("tests.networks.test_base.nn", "is not a subclass of"),
        ("cifar_lit.networks.fast.Stage", "is not a subclass of Network"),
        ("__main__.Net", "was defined in a script or notebook"),
        ("nowhere.Net", "is of another package: give `trust`, if you trust this file, or import nowhere first"),
        ("antigravity.Net", "is of another package"),
        ("cifar_lit.networks_of_another.Net", "is of another package"),
        ("cifar_lit.networks.nothing.Net", "cannot be imported"),
        ("cifar_lit.networks.fast.Nothing", "has no Nothing"),
        ("Net", "cannot be imported"),
        (".Net", "cannot be imported"),
        ("os..path.Net", "cannot be imported"),
    ],
)
def test_a_checkpoint_cannot_have_anything_but_a_network_built(class_path: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build_network({"class_path": class_path, "init_args": {}}, num_classes=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"wdith": 3}, "`net`: wrong options for WideNet: got an unexpected keyword argument 'wdith'"),
        ({"num_classes": 3}, "`net`: num_classes of WideNet is that of the data: leave it out"),
    ],
)
def test_an_option_that_the_network_does_not_have_is_named(options: dict[str, int], expected: str) -> None:
    with pytest.raises(UserError, match=f"^{expected}$"):
        build_network(describe_network(functools.partial(WideNet, **options)), num_classes=2)


class Faulty(Network):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        nn.Linear(num_classes)  # type: ignore[call-arg]


def test_an_error_in_a_constructor_is_no_user_error() -> None:
    with pytest.raises(TypeError, match="out_features"):
        build_network(describe_network(Faulty), num_classes=2)


def test_only_a_trusted_network_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("foreign_module.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\nfrom tests.helpers.networks import WideNet as Net"
    )
    monkeypatch.syspath_prepend(".")
    spec = {"class_path": "foreign_module.Net", "init_args": {}}
    with pytest.raises(UserError, match="is of another package"):
        build_network(spec, num_classes=2)
    assert not Path("imported").exists()
    with pytest.raises(UserError, match=r"nowhere.Net cannot be imported: there is no module nowhere in this folder"):
        import_network("nowhere.Net")
    import_network("foreign_module.Net")
    assert type(build_network(spec, num_classes=2)).__name__ == "WideNet"


@pytest.mark.parametrize(
    "options",
    [{"num_convs": 10**9}, {"num_convs": 1.5}, {"widths": [10**9]}, {"widths": [4] * 6}, {"widths": 3}, {"widths": []}],
)
def test_a_network_that_no_machine_can_build_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` is .*: must be"):
        build_network({"class_path": "cifar_lit.networks.FastCNN", "init_args": options}, num_classes=2)


def test_by_default_nothing_is_initialised_from_images() -> None:
    net = TutorialCNN()
    before = [parameter.clone() for parameter in net.parameters()]
    net.prepare(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_evaluation_mode_ends_with_the_mode_of_each_part_also_after_an_error() -> None:
    net = FastCNN(3, widths=[4, 4])
    net.stages[0].eval()
    modes = [part.training for part in net.modules()]
    with contextlib.suppress(KeyError), evaluation_mode(net):
        assert not any(part.training for part in net.modules())
        raise KeyError
    assert [part.training for part in net.modules()] == modes


class Fixed(nn.Module):
    """As the tutorial writes a network: it takes nothing, and always gives three logits."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv, self.act, self.linear = nn.Conv2d(3, 2, 3, stride=4), act(), nn.Linear(128, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.act(self.conv(x))
        return self.linear(x.view(len(x), -1))


class Handing(Fixed):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Needy(Handing):
    def __init__(self, depth: Any, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = depth, num_classes


class HandingOn(Needy):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(depth=3, **kwargs)


def test_any_module_is_a_network_and_gets_num_classes_if_it_takes_that() -> None:
    assert isinstance(build_network(describe_network(Fixed), num_classes=3), Fixed)
    net = build_network(describe_network(functools.partial(Needy, depth=2)), num_classes=4)
    assert isinstance(net, Needy)
    assert net.size == (2, 4)
    assert [takes_num_classes(kind) for kind in (Fixed, Handing, Needy, HandingOn, nn.Module)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert getattr(build_network(describe_network(HandingOn), num_classes=5), "size") == (3, 5)  # noqa: B009
    with pytest.raises(UserError, match=r"^`net`: Needy has no default for depth: give `net`.depth$"):
        build_network(describe_network(Needy), num_classes=4)


@dataclasses.dataclass
class Equal(Fixed):
    width: int = 2

    def __post_init__(self) -> None:
        super().__init__()


def test_a_class_without_a_hash_is_refused() -> None:
    with pytest.raises(UserError, match=r"`net`: Equal has no hash, .*: write @dataclass\(eq=False\) above it"):
        build_network(describe_network(Equal), num_classes=3)


def test_a_default_that_a_checkpoint_cannot_hold_is_left_out() -> None:
    # What jsonargparse passes: all defaults, and None for an argument without a type and a default.
    assert describe_network(functools.partial(Fixed, act=nn.ReLU))["init_args"] == {}
    assert describe_network(functools.partial(Needy, depth=None))["init_args"] == {}
    with pytest.raises(UserError, match=r"its act is <class .*GELU.*>: must be a plain number"):
        describe_network(functools.partial(Fixed, act=nn.GELU))


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3))


def test_a_network_is_laid_out_as_it_can_compute() -> None:
    for net, expected in ((Fixed(), False), (WideNet(3), True), (Lazy(), True), (TutorialCNN(3), True)):
        assert lay_out(net) is expected
        weight = next(part for part in net.parameters() if part.ndim == 4)
        assert weight.is_contiguous(memory_format=torch.channels_last) is expected
        assert net.training
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (
            torch.zeros(2, 10),
            r"gives \(2, 10\) for 2 images: must give \(2, 4\), for 4 classes; let its constructor take",
        ),
        (torch.zeros(64, 4), r"gives \(64, 4\) for 2 images: must give \(2, 4\)$"),
        ((torch.zeros(2, 4), None), r"returns a tuple of \(2, 4\), NoneType: must return logits \(2, 4\) alone"),
        (None, "gives NoneType"),
    ],
)
def test_logits_of_another_shape_are_refused(logits: object, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_logits(logits, Fixed(), 2, 4)


@pytest.mark.parametrize(
    ("num_in", "kernel_size", "stride", "expected"),
    [
        (3, 1, 2, False),
        (7, 1, (1, 2), False),
        (8, 1, 2, True),
        (3, 3, 2, True),
        (3, 1, 1, True),
    ],
)
def test_a_layer_that_torch_cannot_train_in_channels_last_keeps_a_network_out_of_it(
    num_in: int, kernel_size: int, stride: int | tuple[int, int], expected: bool
) -> None:
    """Its backward pass in torch 2.14 ends in a segmentation fault: no test can do it in this process."""
    layer = nn.Conv2d(num_in, 16, kernel_size, stride=stride)
    stem = nn.Conv2d(3, num_in, 3, padding=1)
    net = nn.Sequential(stem, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert lay_out(net) is expected
    assert stem.weight.is_contiguous(memory_format=torch.channels_last) is expected
