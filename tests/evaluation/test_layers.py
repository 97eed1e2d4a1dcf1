"""The explanation of layers: formulas against PyTorch, and the tutorial's numbers by hand."""

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cifar_lit.evaluation.formulas import output_size
from cifar_lit.evaluation.layers import explain_layers, format_layers
from cifar_lit.networks import FastCNN, TutorialCNN

IMAGE = (3, 32, 32)


def test_the_tutorials_layers_are_those_computed_by_hand() -> None:
    layers = {layer.name.partition(".")[2]: layer for layer in explain_layers(TutorialCNN(), torch.zeros(1, *IMAGE))}
    shapes = {
        "conv1": (32, 32, 32),
        "pool1": (32, 16, 16),
        "conv2": (32, 16, 16),
        "pool2": (32, 8, 8),
        "conv3": (64, 8, 8),
        "pool3": (64, 4, 4),
        "flatten": (1024,),
        "linear1": (64,),
        "linear2": (10,),
    }
    assert {name: layer.shape_out for name, layer in layers.items()} == shapes
    counts = {name: (layer.num_parameters, layer.multiplications) for name, layer in layers.items()}
    assert counts["conv1"] == (3 * 32 * 25 + 32, 32 * 32 * 32 * 75)
    assert counts["conv2"] == (32 * 32 * 25 + 32, 32 * 16 * 16 * 800)
    assert counts["conv3"] == (32 * 64 * 25 + 64, 64 * 8 * 8 * 800)
    assert counts["pool1"] == counts["flatten"] == (0, 0)
    assert counts["linear1"] == (65_600, 65_536)
    assert counts["linear2"] == (650, 640)
    assert layers["conv1"].rows[0] == ("height, width", "floor((32 + 2*2 - 1*(5 - 1) - 1) / 1 + 1) = 32")
    assert layers["pool3"].rows[0] == ("height, width", "floor((8 + 2*0 - 1*(2 - 1) - 1) / 2 + 1) = 4")
    assert sum(layer.num_parameters for layer in layers.values()) == 145_578


WINDOWS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(3, 4, 3, padding="same"),
    lambda: nn.Conv2d(3, 4, 4, padding="same", dilation=2),
    lambda: nn.Conv2d(3, 4, 3, padding="valid", stride=2),
    lambda: nn.Conv2d(3, 4, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
    lambda: nn.Conv2d(3, 6, 3, groups=3),
    lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=2),
    lambda: nn.MaxPool2d((2, 3), ceil_mode=True),
    lambda: nn.AvgPool2d(3, stride=(2, 1), padding=1),
    lambda: nn.AvgPool2d(2, ceil_mode=True),
    lambda: nn.LPPool2d(2, 3),
    lambda: nn.MaxPool2d(2, stride=3, padding=1, ceil_mode=True),
    lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=2, padding=1, output_padding=1, dilation=(1, 2)),
]


@pytest.mark.parametrize("size", [(32, 32), (31, 48)])
@pytest.mark.parametrize("make", WINDOWS)
def test_the_formula_gives_what_pytorch_gives(make: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    (layer,) = explain_layers(nn.Sequential(make()), torch.zeros(1, 3, *size))
    results = [int(text.rpartition("= ")[2]) for title, text in layer.rows if title[0] in "hw"]
    assert layer.shape_out is not None
    assert (results * 2)[:2] == list(layer.shape_out[1:])


def test_the_formula_holds_for_every_small_window() -> None:
    for size, kernel, stride, padding, ceil_mode in itertools.product(
        range(3, 9), (2, 3), (1, 2, 3, 4), (0, 1), (False, True)
    ):
        layer = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
        expected = layer(torch.zeros(1, 1, size, size)).shape[-1]
        assert output_size(size, kernel, stride, 2 * padding, ceil_mode=ceil_mode) == expected
        ((_, formula),) = explain_layers(layer, torch.zeros(1, 1, size, size))[0].rows
        left, _, result = formula.replace(" (a window in the padding)", "").rpartition(" = ")
        assert (
            eval(left, {"ceil": math.ceil, "floor": math.floor}) == int(result) == expected
        )  # what is written is true


def test_multiplications_are_half_of_the_operations_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import resnet18

    for net in (FastCNN(), resnet18(num_classes=10)):
        images = torch.zeros(1, *IMAGE)
        layers = explain_layers(net, images)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(images)
        assert 2 * sum(layer.multiplications for layer in layers) == counter.get_total_flops()
        assert sum(layer.num_parameters for layer in layers) == sum(p.numel() for p in net.parameters())


def test_a_shared_layer_counts_its_parameters_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(self.conv(images))  # type: ignore[no-any-return]

    first, second = explain_layers(Twice(), torch.zeros(1, *IMAGE))
    assert (first.num_parameters, second.num_parameters) == (12, 0)
    assert ("parameters", "shared with a layer above, counted there") in second.rows


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (
            [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10)],
            "expects 2,048 features, and gets 1,800: 2 gives 1800, from 1's 8x15x15",
        ),
        ([nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 3)], "expects 16 channels, and gets 8: 0 gives 8x30x30"),
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)], "expects 4 channels, and gets 8: 0 gives 8x30x30"),
        ([nn.MaxPool2d(16), nn.Conv2d(3, 8, 5)], "has a window larger than its input 3x2x2, padding included"),
        ([nn.Flatten(), nn.Conv2d(3, 8, 5)], "expects channels x height x width, and gets 3072"),
    ],
)
def test_a_layer_that_does_not_fit_is_the_last_and_says_why(layers: list[nn.Module], problem: str) -> None:
    explained = explain_layers(nn.Sequential(*layers), torch.zeros(1, *IMAGE))
    assert explained[-1].problem == problem
    assert explained[-1].shape_out is None
    assert [layer.problem for layer in explained[:-1]] == [""] * (len(explained) - 1)


def test_an_error_of_the_networks_own_code_passes_through() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        explain_layers(nn.Sequential(nn.Identity(), Broken()), torch.zeros(1, *IMAGE))


def test_a_failed_network_keeps_its_mode_and_has_no_hooks_left() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    explain_layers(net, torch.zeros(1, *IMAGE))
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_text_fits_80_columns_and_names_changes_between_layers() -> None:
    text = format_layers(explain_layers(FastCNN(), torch.zeros(1, *IMAGE)), IMAGE)
    assert max(map(len, text.splitlines())) <= 80
    assert "not called" not in text
    assert "between the layers: 64 x 32 x 32 -> 64 x 16 x 16" in text
    assert re.search(r"1,972,792 parameters, 146,573,824 multiplications per image$", text)


def test_parameters_of_modules_that_are_not_called_are_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    layers = explain_layers(net, torch.zeros(2, *IMAGE))
    assert format_layers(layers, IMAGE, 6146 + 1000).endswith(
        "\n1,000 parameters of modules that are not called\n\n7,146 parameters, 6,144 multiplications per image"
    )


def test_a_resnet_is_explained_in_80_columns() -> None:
    from torchvision.models import resnet18

    text = format_layers(explain_layers(resnet18(num_classes=10), torch.zeros(1, *IMAGE)), IMAGE)
    assert max(map(len, text.splitlines())) <= 80
    assert "floor((32 + 2*3 - 1*(7 - 1) - 1) / 2 + 1) = 16\n" in text
    assert "avgpool: AdaptiveAvgPool2d(output_size=(1, 1))\n  output          512 x 1 x 1\n" in text
    first, stage = 64 * 16 * 16 * 3 * 49, 128 * 4 * 4 * (64 * 9 + 3 * 128 * 9 + 64)  # which all stages but one have
    assert first + 4 * 64 * 8 * 8 * 64 * 9 + 3 * stage + 512 * 10 == 37_016_576
    assert text.endswith("\n11,181,642 parameters, 37,016,576 multiplications per image")
