"""The tutorial's network: three 5x5 convolutions, each with max-pooling, then two linear layers."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cifar_lit.machine import has_fast_bfloat16
from cifar_lit.networks.base import Network

BLOCKED = (nn.Conv2d, nn.MaxPool2d, nn.Flatten, nn.Linear)
"""Layers that take or end features in oneDNN's blocked layout."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
"""Attributes of a layer by which something looks at its features, or changes them."""


class TutorialCNN(Network):
    """The convolutional network of the tutorial, whose only nonlinearity is max-pooling.

    With ten classes it has 145,578 parameters. The initialisation is PyTorch's default.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images, at least 8.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        side = image_size // 2 // 2 // 2  # after three poolings
        # Named layers, for the graph and the summary.
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=5, padding=2),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 32, kernel_size=5, padding=2),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, kernel_size=5, padding=2),
                pool3=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * side * side, 64),
                linear2=nn.Linear(64, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, image_size, image_size)`` to logits ``(N, num_classes)``."""
        if not trains_blocked(self.layers, images):
            logits: Tensor = self.layers(images)
            return logits
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        features = images.to(dtype).to_mkldnn()
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and dtype == torch.bfloat16:
                features = convolve_bfloat16(layer, features)
            else:
                features = layer(features.to_dense() if isinstance(layer, nn.Flatten) else features)
        return features


def convolve_bfloat16(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Convolve features in oneDNN's blocked layout, in bfloat16; autocast leaves such features to float32 filters."""
    assert not isinstance(layer.padding, str)  # by ``trains_blocked``
    weight = layer.weight.bfloat16()
    bias = None if layer.bias is None else layer.bias.bfloat16()
    return torch.mkldnn_convolution(features, weight, bias, layer.padding, layer.stride, layer.dilation, layer.groups)


def trains_blocked(layers: nn.Sequential, images: Tensor) -> bool:
    """Return whether a training step keeps the features in oneDNN's blocked layout, from convolution to convolution.

    Few channels suit that layout: a step takes 0.85 to 0.9 of the time on a CPU with AVX2, 0.89 to 0.95 with AVX-512,
    and 0.83 in bfloat16. The values are those of torch's default layout, with AVX-512 up to rounding. Only the layers
    of this network take such features, and what looks at them from outside (hooks, anomaly detection, derivatives by
    the images, tracing, subclasses of Tensor) does not. Nor do second derivatives by the weights, ``torch.func.vmap``
    and ``jvp``: they need ``eval()``.
    """
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    return (
        layers.training
        and type(layers) is nn.Sequential
        and type(images) is Tensor  # and no proxy of torch.fx, or fake tensor
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and torch.is_grad_enabled()
        and not images.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and not torch.is_anomaly_enabled()
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and (not torch.is_autocast_enabled("cpu") or takes_bfloat16())
        and all(type(layer) in BLOCKED for layer in layers)
        and not any(vars(layer).get(name) for layer in (layers, *layers) for name in HOOKS)
        and all(type(layer.padding) is tuple and layer.padding_mode == "zeros" for layer in convolutions)
        and all(isinstance(weights, nn.Parameter) for weights in layers.parameters())
    )


def takes_bfloat16() -> bool:
    """Return whether autocast on the CPU is to bfloat16, and CPU and oneDNN (which can be limited) have it."""
    is_bfloat16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_bfloat16 and has_fast_bfloat16() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
