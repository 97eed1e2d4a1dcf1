"""Kernels and precision that are chosen by measuring. The times themselves are replaced: no test asserts one."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from cifar_lit.errors import UserError
from cifar_lit.networks import FastCNN, TutorialCNN, kernels, measuring
from cifar_lit.networks.kernels import check_kernels, check_shapes, choose_kernels, choose_precision, part_size
from cifar_lit.networks.winograd import Conv3x3, Kernels

FILE = Path("home/.cache/cifar_lit/measured.json")  # the home folder of each test


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let Winograd's method take half of the time on images of 8 pixels, in bfloat16 of others; note what is timed."""
    calls: list[tuple[int, ...]] = []

    def time_winograd(dtype: torch.dtype, *shape: int) -> float:
        calls.append(shape)
        return 0.5 if (shape[-1] == 8) == (dtype == torch.float32) else 0.95

    monkeypatch.setattr(kernels, "time_winograd", time_winograd)
    return calls


class Dropping(nn.Module):
    """Two convolutions with statistics, a layer that is random in training, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Conv3x3(3, 64), nn.BatchNorm2d(64), nn.Dropout(), Conv3x3(64, 64))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images).mean((2, 3))
        return logits


def test_each_shape_has_the_faster_kernel_unless_that_is_noise(timed: list[tuple[int, ...]]) -> None:
    net = FastCNN(10, widths=[64, 96])
    expected = {"64x64@8": "winograd", "64x96@8": "winograd", "96x96@4": "direct"}  # of few channels there is no choice
    assert choose_kernels(net, [16, 16], 500) == (expected, True)
    assert timed == [
        (min(500, part_size(torch.float32, *shape)), *shape) for shape in [(64, 64, 8), (64, 96, 8), (96, 96, 4)]
    ]
    assert part_size(torch.float32, 64, 256, 16) == 26
    assert part_size(torch.bfloat16, 64, 256, 16) == 79
    assert part_size(torch.bfloat16, 4096, 4096, 256) == 1
    larger = {"64x64@16": "direct", "64x96@16": "direct", "96x96@8": "winograd"}
    assert choose_kernels(net, [16, 32], 500) == (expected | larger, True)
    assert choose_kernels(TutorialCNN(10), [32], 500) == ({}, True)


def test_what_was_measured_is_kept(timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    net = FastCNN(10, widths=[64])
    first = choose_kernels(net, [16], 4)
    assert [choose_kernels(FastCNN(3, widths=[64]), [16], 4), len(timed)] == [first, 1]
    choose_kernels(net, [16], 5)
    assert len(timed) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    choose_kernels(net, [16], 5)
    assert len(timed) == 3
    monkeypatch.setattr(measuring, "cpu_name", lambda: "another")
    choose_kernels(net, [16], 5)
    assert len(timed) == 4
    assert len(json.loads(FILE.read_bytes())) == 2
    assert choose_kernels(net, [16], 5, torch.bfloat16) == ({"64x64@8": "direct"}, True)
    assert choose_kernels(net, [16], 5) == ({"64x64@8": "winograd"}, True)
    assert len(timed) == 5


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3}', "[" * 100_000, None])
def test_a_damaged_file_is_no_error(text: str | None, timed: list[tuple[int, ...]]) -> None:
    FILE.parent.mkdir(parents=True)
    if text is not None:
        FILE.write_text(text)
    else:  # values that are no times
        choose_kernels(FastCNN(10, widths=[64]), [16], 4)
        content = {machine: dict.fromkeys(known, "fast") for machine, known in json.loads(FILE.read_bytes()).items()}
        FILE.write_text(json.dumps(content))
    for _ in range(2):
        assert choose_kernels(FastCNN(10, widths=[64]), [16], 4) == ({"64x64@8": "winograd"}, True)
    assert len(timed) == (1 if text is not None else 2)


def test_without_a_place_it_is_measured_again(timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("home").write_text("no folder")
    for home in ("home", None):
        if home is None:
            monkeypatch.setattr(Path, "expanduser", raise_no_home)
        assert choose_kernels(FastCNN(10, widths=[64]), [16], 4) == ({"64x64@8": "winograd"}, True)
    assert len(timed) == 2
    assert [path.name for path in Path().iterdir()] == ["home"]


def raise_no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "choose",
    [
        lambda net: choose_kernels(net, [8], 4),
        lambda net: choose_kernels(net, [8], 4, torch.bfloat16),
        lambda net: choose_precision(net, 8, 4, ("direct", "winograd")),
    ],
    ids=["kernels", "kernels in bfloat16", "precision"],
)
def test_nothing_but_the_time_passes(choose: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(measuring, "CALM", 0)
    net = Dropping()
    net.layers[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, random_state = [part.training for part in net.modules()], torch.get_rng_state()
    with torch.no_grad():
        assert choose(net)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    (share,) = {value for known in json.loads(FILE.read_bytes()).values() for value in list(known.values())[:1]}
    assert 0 < share < 1e6


def test_what_other_work_disturbs_is_neither_taken_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(measuring, "CALM", 1e6)
    net = Dropping()
    assert choose_kernels(net, [8], 4) == ("winograd", False)
    assert choose_kernels(net, [8], 4, torch.bfloat16) == ("direct", False)
    assert choose_precision(net, 8, 4, ("direct", "direct")) is None
    assert not FILE.exists()


@pytest.mark.parametrize("error", [Timeout("home"), NotImplementedError("no locks"), PermissionError("home")])
def test_without_the_lock_nothing_is_forgotten(
    error: Exception, timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise error

    choose_kernels(FastCNN(10, widths=[64]), [16], 4)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    choose_kernels(FastCNN(10, widths=[64]), [32], 4)
    assert [len(shares) for shares in json.loads(FILE.read_bytes()).values()] == [len(timed)] == [2]


def test_what_bfloat16_is_worth_is_measured_for_each_option_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter([0.5, 0.9, 0.9])
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(kernels, "time_bfloat16", lambda *_args: next(shares))
    for _ in range(2):
        assert choose_precision(FastCNN(10), 32, 500, ({"64x64@16": "direct"}, "winograd")) == "bf16-mixed"
        assert choose_precision(FastCNN(10), 32, 500, ("direct", "direct"), "direct") == "32-true"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert choose_precision(FastCNN(10), 32, 500, ("auto", "auto")) == "32-true"


class OfOneType(nn.Module):
    """Logits that are written into a tensor of another type, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 10)
        logits[torch.arange(len(images))] = self.head(images.mean((2, 3)))
        return logits


def test_a_network_that_bfloat16_does_not_suit_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    assert choose_precision(OfOneType(), 8, 4, ({}, {})) == "32-true"
    assert not FILE.exists()


def test_a_processor_that_is_shared_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "num_processors", lambda: 0.001)
    assert measuring.measure_share(lambda: time.sleep(0.001), lambda: sum(range(100_000))) is not None
    monkeypatch.setattr(measuring, "num_processors", lambda: 1e6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert measuring.measure_share(lambda: None, lambda: None) is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, "bf16-mixed"), (0.9, "32-true")])
def test_bfloat16_is_chosen_where_it_has_instructions_and_pays(
    share: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    both: tuple[Kernels, Kernels] = ("direct", "winograd")

    def time_bfloat16(_net: nn.Module, num_images: int, size: int, of_both: tuple[Kernels, Kernels]) -> float:
        assert of_both == both
        calls.append((num_images, size))
        return share

    monkeypatch.setattr(kernels, "time_bfloat16", time_bfloat16)
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: False)
    assert choose_precision(TutorialCNN(10), 32, 500, both) == "32-true"
    assert calls == []
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    assert [choose_precision(TutorialCNN(10), 32, 500, both) for _ in range(2)] == [expected] * 2
    assert calls == [(32, 32)]
    deep = [FastCNN(widths=(8, 16, 16), num_convs=depths) for depths in ([2, 2, 3], [2, 3, 2])]
    assert len({sum(one.numel() for one in net.parameters()) for net in deep}) == 1
    assert [choose_precision(net, 32, 500, both) for net in deep] == [expected] * 2
    assert len(calls) == 3  # each network is measured, though they have as many parameters


@pytest.mark.parametrize(
    "given", ["fast", 3, None, ["direct"], {"64x64": "direct"}, {"64x64@8": "auto"}, {8: "direct"}]
)
def test_other_kernels_are_refused(given: object) -> None:
    with pytest.raises(UserError, match=r"`kernels` is .*: must be auto, direct, winograd, or a mapping") as error:
        check_kernels(given)
    assert "\n" not in str(error.value)


def test_a_shape_that_the_network_has_not_is_refused() -> None:
    net = FastCNN(10, widths=[64])
    check_shapes(net, {"64x64@8": "direct", "64x64@16": "direct", "24x64@16": "direct"}, [16, 32])
    check_shapes(TutorialCNN(10), "direct", [32])
    check_shapes(TutorialCNN(10), {}, [32])
    for shape in ("64x56@8", "64x64@16"):
        expected = f"`kernels` has {shape}, and the network no such convolution (FastCNN has 24x64@16, 64x64@8): give"
        with pytest.raises(UserError, match=re.escape(expected)):
            check_shapes(net, {"64x64@8": "direct", shape: "direct"}, [16])
    with pytest.raises(UserError, match=r"\(TutorialCNN has none with two kernels\): give auto"):
        check_shapes(TutorialCNN(10), {"3x32@32": "direct"}, [32])
