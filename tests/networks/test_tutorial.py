"""The tutorial's network: both forms of the tutorial, sizes, learning."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from cifar_lit.networks import TutorialCNN, tutorial


class Attributes(nn.Module):
    """The first form: layers as attributes, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 5, padding=2)
        self.second = nn.Conv2d(32, 32, 5, padding=2)
        self.third = nn.Conv2d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(1024, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 2)
        x = F.max_pool2d(self.second(x), 2)
        x = F.max_pool2d(self.third(x), 2)
        x = self.hidden(torch.flatten(x, 1))
        logits: Tensor = self.last(x)
        return logits


def sequential() -> nn.Sequential:
    """Build the second form: a Sequential."""
    convolutions: list[nn.Module] = []
    for num_in, num_out in ((3, 32), (32, 32), (32, 64)):
        convolutions += [nn.Conv2d(num_in, num_out, 5, padding=2), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))


def with_weights_of(net: nn.Module, form: nn.Module) -> nn.Module:
    """Copy the weights of our network to one of the two forms, in the order of the layers."""
    form.load_state_dict(dict(zip(form.state_dict(), net.state_dict().values(), strict=True)))
    return form


def test_it_has_the_tutorials_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in TutorialCNN().parameters()) == 145_578


def test_both_written_forms_give_the_same_logits() -> None:
    torch.manual_seed(0)
    net, images = TutorialCNN(), torch.rand(5, 3, 32, 32)
    logits = net(images)
    assert logits.shape == (5, 10)
    for form in (Attributes(), sequential()):
        assert torch.equal(with_weights_of(net, form)(images), logits)


def test_each_layers_output_size_is_what_the_formula_says() -> None:
    def formula(size: int, layer: nn.Conv2d | nn.MaxPool2d) -> int:
        def one(value: int | tuple[int, ...] | str) -> int:
            assert not isinstance(value, str)
            return value if isinstance(value, int) else value[0]

        kernel, stride, padding = one(layer.kernel_size), one(layer.stride), one(layer.padding)
        return (size + 2 * padding - one(layer.dilation) * (kernel - 1) - 1) // stride + 1

    x, size, sizes = torch.rand(2, 3, 32, 32), 32, []
    for layer in TutorialCNN().layers:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size = formula(size, layer)
            assert x.shape[2:] == (size, size)
            sizes.append(size)
    assert sizes == [32, 16, 16, 8, 8, 4]
    assert x.shape == (2, 10)


def test_the_initialisation_is_the_default_one() -> None:
    torch.manual_seed(3)
    ours = TutorialCNN().state_dict().values()
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(ours, sequential().state_dict().values(), strict=True))


def test_gradients_reach_every_parameter_and_it_overfits_32_images() -> None:
    torch.manual_seed(0)
    net, images, labels = TutorialCNN(7), torch.rand(32, 3, 32, 32), torch.arange(32) % 7
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(net(images).argmax(1), labels)


def logits_and_gradients(net: TutorialCNN, images: Tensor) -> list[Tensor]:
    net.zero_grad()
    logits = net(images)
    F.cross_entropy(logits, torch.arange(len(images)) % 10).backward()  # type: ignore[no-untyped-call]
    return [logits, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


@pytest.fixture(params=["AVX2", "AVX512"])
def avx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)


@pytest.mark.parametrize(("size", "layout"), [(8, torch.contiguous_format), (33, torch.channels_last)])
def test_a_training_step_in_the_blocked_layout_has_the_same_values(
    size: int, layout: torch.memory_format, avx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = TutorialCNN(image_size=size).to(memory_format=layout)
    images = torch.rand(5, 3, size, size).round(decimals=1).contiguous(memory_format=layout)  # with ties in the pools
    assert tutorial.trains_blocked(net.layers, images)
    blocked = logits_and_gradients(net, images)
    monkeypatch.setattr(tutorial, "trains_blocked", lambda *_: False)
    plain = logits_and_gradients(net, images)
    assert len(blocked) == 11
    for ours, torchs in zip(blocked, plain, strict=True):
        assert not ours.is_mkldnn
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN computes in bfloat16 with AVX-512 alone")
    monkeypatch.setattr(tutorial, "has_fast_bfloat16", lambda: True)


@pytest.mark.parametrize(("size", "layout"), [(8, torch.contiguous_format), (33, torch.channels_last)])
def test_a_step_in_bfloat16_in_the_blocked_layout_has_the_values_of_the_default_one(
    size: int, layout: torch.memory_format, bfloat16: None, avx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = TutorialCNN(image_size=size).to(memory_format=layout)
    images = torch.rand(5, 3, size, size).round(decimals=1).contiguous(memory_format=layout)
    exact = logits_and_gradients(net, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert tutorial.trains_blocked(net.layers, images)
        blocked = logits_and_gradients(net, images)
        monkeypatch.setattr(tutorial, "trains_blocked", lambda *_: False)
        plain = logits_and_gradients(net, images)
    assert len(blocked) == 11
    assert blocked[0].dtype == torch.bfloat16
    for ours, torchs, true in zip(blocked, plain, exact, strict=True):
        assert ours.dtype == torchs.dtype
        off = (torchs - true).norm()
        assert not ours.is_mkldnn
        assert off > 0
        assert (ours - true).norm() <= 1.1 * off


def test_a_step_of_lower_precision_without_instructions_for_it_or_in_float16_is_not_blocked(
    avx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images = TutorialCNN(), torch.rand(2, 3, 32, 32)
    for has_it, takes_it, dtype, expected in (
        (True, True, torch.bfloat16, True),
        (False, True, torch.bfloat16, False),
        (True, False, torch.bfloat16, False),
        (True, True, torch.float16, False),
    ):
        monkeypatch.setattr(tutorial, "has_fast_bfloat16", lambda has_it=has_it: has_it)
        onednn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda takes_it=takes_it: takes_it)
        monkeypatch.setattr(torch.ops, "mkldnn", onednn)
        with torch.autocast("cpu", dtype):
            assert tutorial.trains_blocked(net.layers, images) is expected


@pytest.mark.parametrize(
    "options",
    [{"padding": "same"}, {"padding_mode": "reflect"}, {"bias": False}, {"dilation": 2, "padding": 4}, {"groups": 4}],
)
def test_a_convolution_of_other_options_in_its_place_trains(options: dict[str, Any], bfloat16: None, avx: None) -> None:
    net, images = TutorialCNN(image_size=16), torch.rand(2, 3, 16, 16)
    net.layers.conv2 = nn.Conv2d(32, 32, 5, **{"padding": 2} | options)
    with torch.no_grad():
        expected = net(images)
    torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
        torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.01)
        logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def with_a_hook(net: TutorialCNN, images: Tensor) -> Tensor:
    means: list[Tensor] = []
    hook = net.layers[2].register_forward_hook(lambda *args: means.append(args[2].mean()))
    logits: Tensor = net(images)
    hook.remove()
    return logits + 0 * means[0]


def with_anomaly_detection(net: TutorialCNN, images: Tensor) -> Tensor:
    with torch.autograd.set_detect_anomaly(True):
        logits: Tensor = net(images)
        logits.sum().backward()  # type: ignore[no-untyped-call]
    return logits


def with_a_gradient_by_the_images(net: TutorialCNN, images: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    logits: Tensor = net(images)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    slope.square().sum().backward()  # type: ignore[no-untyped-call]
    return logits


def with_a_gradient_of_each_image(net: TutorialCNN, images: Tensor) -> Tensor:
    def logit(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        output: Tensor = functional_call(net, parameters, image[None])
        return output.sum()

    vmap(grad(logit), in_dims=(None, 0))(dict(net.named_parameters()), images)
    logits: Tensor = net(images)
    return logits


def without_onednn(net: TutorialCNN, images: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it warns of GPUs
        logits: Tensor = net(images)
    return logits


def with_another_layer(net: TutorialCNN, images: Tensor) -> Tensor:
    changed = TutorialCNN()
    changed.layers.pool1 = nn.AvgPool2d(2)
    assert not torch.equal(changed(images), net(images))
    logits: Tensor = net(images)
    return logits


def hooked(net: TutorialCNN, images: Tensor, layer: nn.Module) -> Tensor:
    """Return the logits, and see that hooks before a layer, forward and backward, are called with ordinary features."""
    means: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].view(-1).mean())),
        layer.register_full_backward_pre_hook(lambda *args: means.append(args[1][0].view(-1).mean())),
    ]
    logits: Tensor = net(images)
    logits.sum().backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    assert len(means) == 2
    return logits


def with_hooks_before_a_layer(net: TutorialCNN, images: Tensor) -> Tensor:
    return hooked(net, images, net.layers[2])


def with_hooks_of_all_layers_together(net: TutorialCNN, images: Tensor) -> Tensor:
    return hooked(net, images, net.layers)


def traced(net: TutorialCNN, images: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        assert torch.equal(torch.jit.trace(net, images)(images), net.layers(images))  # type: ignore[no-untyped-call]
    logits: Tensor = net(images)
    return logits


def as_a_graph(net: TutorialCNN, images: Tensor) -> Tensor:
    assert torch.equal(torch.fx.symbolic_trace(net)(images), net.layers(images))
    logits: Tensor = net(images)
    return logits


def in_evaluation_mode(net: TutorialCNN, images: Tensor) -> Tensor:
    logits: Tensor = vmap(lambda image: net.eval()(image[None])[0])(images)
    slopes = torch.autograd.grad(net(images).square().sum(), list(net.parameters()), create_graph=True)
    sum(slope.square().sum() for slope in slopes).backward()  # type: ignore[union-attr]
    return logits


def with_a_hook_of_all_modules(net: TutorialCNN, images: Tensor) -> Tensor:
    seen: dict[nn.Module, Tensor] = {}
    hook = register_module_forward_hook(lambda *args: seen.update({args[0]: args[2].view(-1)}))
    try:
        logits: Tensor = net(images)
    finally:
        hook.remove()
    assert set(net.layers) < set(seen)
    return logits


def with_layers_of_another_kind(net: TutorialCNN, images: Tensor) -> Tensor:
    class Noting(nn.Sequential):
        def forward(self, features: Tensor) -> Tensor:
            seen.append(features)
            logits: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
            return logits

    seen: list[Tensor] = []
    net.layers = Noting(OrderedDict(net.layers.named_children()))
    logits: Tensor = net(images)
    assert len(seen) == 1
    return logits


def with_a_forward_of_its_own(net: TutorialCNN, images: Tensor) -> Tensor:
    layer = net.layers[2]
    forward, layer.forward = layer.forward, lambda features: forward(features.view(-1).view_as(features))
    logits: Tensor = net(images)
    return logits


@pytest.mark.parametrize(
    "use",
    [
        with_a_hook,
        with_a_hook_of_all_modules,
        with_hooks_of_all_layers_together,
        with_layers_of_another_kind,
        with_a_forward_of_its_own,
        with_anomaly_detection,
        with_a_gradient_by_the_images,
        with_a_gradient_of_each_image,
        without_onednn,
        with_another_layer,
        with_hooks_before_a_layer,
        traced,
        as_a_graph,
        in_evaluation_mode,
    ],
)
def test_what_looks_at_the_features_finds_ordinary_ones(
    use: Callable[[TutorialCNN, Tensor], Tensor], avx: None
) -> None:
    net, images = TutorialCNN(), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
    torch.testing.assert_close(use(net, images), expected, rtol=1e-5, atol=1e-6)
