"""The description of a network in a checkpoint, and the network that is built from it."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lit.errors import UserError
from cifar_lit.networks import FastCNN, Network, TutorialCNN, build_network, describe_network
from cifar_lit.networks.base import evaluation_mode, import_network
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


@pytest.mark.parametrize("net", [nn.Linear, nn.Linear(3, 3), {}, {"class_path": 3, "init_args": {}}])
def test_what_is_no_network_is_refused(net: object) -> None:
    with pytest.raises(UserError, match="must be a subclass of"):
        describe_network(net)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_path", "expected"),
    [
        ("subprocess.Popen", "is not a subclass of"),
        ("torch.nn.Linear", "is not a subclass of"),
        ("nowhere.Net", "is of another package: give `trust`, if you trust this file, or import nowhere first"),
        ("antigravity.Net", "is of another package"),
        ("cifar_lit.networks_of_another.Net", "is of another package"),
        ("cifar_lit.networks.nothing.Net", "cannot be imported"),
        ("cifar_lit.networks.fast.Nothing", "is not a subclass of"),
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
        ({"num_classes": 3}, "`net`: wrong options for WideNet: multiple values for argument 'num_classes'"),
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


@pytest.mark.parametrize(
    ("content", "error"),
    [("import missing_package", ModuleNotFoundError), ("None.attribute", AttributeError), ("int('x')", ValueError)],
)
def test_an_error_in_the_module_of_a_trusted_network_is_no_user_error(
    content: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("faulty_module.py").write_text(content)
    monkeypatch.syspath_prepend(".")
    with pytest.raises(error) as raised:
        import_network("faulty_module.Net")
    assert not isinstance(raised.value, UserError)


def test_only_a_trusted_network_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("foreign_module.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\nfrom tests.helpers.networks import WideNet as Net"
    )
    monkeypatch.syspath_prepend(".")
    spec = {"class_path": "foreign_module.Net", "init_args": {}}
    with pytest.raises(UserError, match="is of another package"):
        build_network(spec, num_classes=2)
    assert not Path("imported").exists()
    with pytest.raises(UserError, match=r"nowhere.Net cannot be imported: No module named 'nowhere'"):
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
