"""A network for high accuracy per minute: few wide layers, and a first layer that is not trained."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.errors import UserError, require
from cifar_lit.networks.base import Network
from cifar_lit.networks.winograd import Conv3x3

HEAD_STD = 0.28
HEAD_SCALE = 3.6
"""Initial standard deviation and output scale of the last layer.

airbench94_muon.py has 1 and 1, and a learning rate 12.6 times that of the biases. A standard deviation of c, a scale of
1 / c and a rate multiplied by c squared make the same steps: with c = 0.28 both rates are equal.
"""

MAX_PARAMETERS = 500_000_000
"""In the convolutions of a network: 2 GB, and twice as much again for a training."""


class FastCNN(Network):
    """A whitening layer, stages of 3x3 convolutions that each halve the image, global max-pooling, a linear layer.

    It follows airbench94_muon.py (arXiv 2404.00498, https://github.com/KellerJordan/cifar10-airbench): a frozen first
    layer whose filters are the eigenvectors of 2x2 patches of training images, filters initialised as the identity,
    batch norm without scale and with high momentum, GELU. Differences: the image is padded so that its size halves
    evenly (32, 16, 8, 4), which suits Winograd convolution. Images of any size are accepted, so that training can begin
    with small ones. The logits are scaled so that one learning rate suits the last layer and the biases.

    Args:
        num_classes: Number of logits.
        widths: Channels of each stage, 1 to 4,096, in one to five stages; the image must be at least
            ``2 ** len(widths)`` pixels wide.
        num_convs: Convolutions of each stage, 1 to 64, one number for all or a list; with three or more, the output of
            the last is added to that of the first.
        bias_epochs: Epochs in which the bias of the first layer is trained, by default all. Without it, the gradient of
            the first 3x3 convolution's input is not needed.

    Raises:
        UserError: For sizes outside these ranges, or together above ``MAX_PARAMETERS``, before anything is built.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (64, 256, 256),
        num_convs: int | Sequence[int] = 2,
        bias_epochs: int | None = None,
    ) -> None:
        super().__init__()
        depths = check_sizes(widths, num_convs)
        is_number = bias_epochs is None or (type(bias_epochs) is int and bias_epochs >= 0)
        require("bias_epochs", f"{bias_epochs!s:.60}", is_number, "a whole number of epochs from 0, or null for all")
        self.bias_epochs = bias_epochs
        channels = [24, *widths]  # 12 eigenvectors of patches of 3 channels at 2x2 pixels, and their negatives
        self.whiten = nn.Conv2d(3, channels[0], kernel_size=2)
        self.whiten.weight.requires_grad = False
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)
        self.stages = nn.Sequential()
        for i, (num_in, width) in enumerate(itertools.pairwise(channels)):
            self.stages.add_module(f"stage{i + 1}", Stage(num_in, width, depths[i]))
        self.head = nn.Linear(channels[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=HEAD_STD)

    def prepare(self, images: Tensor) -> None:
        """Set the first layer's filters so that they whiten the 2x2 patches of ``images``."""
        self.whiten.weight.data.copy_(whitening_filters(images))

    def untrained(self, epoch: int) -> Sequence[nn.Parameter]:
        """Return the bias of the first layer, after its epochs."""
        is_trained = self.bias_epochs is None or epoch < self.bias_epochs
        return [] if is_trained else [self.whiten.get_parameter("bias")]

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, height, width)`` to logits ``(N, num_classes)``."""
        whitened = F.gelu(self.whiten(F.pad(images, (0, 1, 0, 1), mode="replicate")))
        features = self.stages(whitened).amax((2, 3))
        logits: Tensor = self.head(features) * (HEAD_SCALE / features.shape[1])
        return logits


def whitening_filters(images: Tensor) -> Tensor:
    """Return filters ``(24, 3, 2, 2)`` that whiten the 2x2 patches of images: eigenvectors, and their negatives."""
    patches = F.unfold(images, kernel_size=2, stride=2).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + 5e-4)).T.view(-1, 3, 2, 2)
    return torch.cat((filters, -filters))


def check_sizes(widths: Sequence[int], num_convs: int | Sequence[int], kernel_size: int = 3) -> list[int]:
    """Return the convolutions of each stage.

    Raises:
        UserError: For sizes that make no network, or one of more than ``MAX_PARAMETERS``.
    """
    is_list = isinstance(widths, list | tuple) and 1 <= len(widths) <= 5
    are_widths = is_list and all(isinstance(width, int) and 1 <= width <= 4096 for width in widths)
    require("widths", f"{widths!s:.60}", are_widths, "one to five whole numbers from 1 to 4096")
    depths: list[Any] = list(num_convs) if isinstance(num_convs, list | tuple) else [num_convs] * len(widths)
    are_depths = len(depths) == len(widths) and all(isinstance(depth, int) and 1 <= depth <= 64 for depth in depths)
    expected = f"a whole number from 1 to 64, or a list with one for each of the {len(widths)} `widths`"
    require("num_convs", f"{num_convs!s:.60}", are_depths, expected)
    pairs = zip(itertools.pairwise([24, *widths]), depths, strict=True)
    num_filters = sum(a * b + (depth - 1) * b * b for (a, b), depth in pairs)
    num_parameters = kernel_size**2 * num_filters
    if num_parameters > MAX_PARAMETERS:
        raise UserError(
            f"`widths` is {list(widths)} and `num_convs` is {num_convs}: that makes {num_parameters:,} parameters, "
            f"and at most {MAX_PARAMETERS:,} are built"
        )
    return depths


class Stage(nn.Module):
    """A convolution, max-pooling to half the size, then further convolutions, with a residual from the third on."""

    def __init__(self, num_in: int, width: int, num_convs: int) -> None:
        super().__init__()
        convs = [Conv3x3(num_in if i == 0 else width, width) for i in range(num_convs)]
        for conv in convs:  # the first filters as the identity
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        self.convs = nn.ModuleList(convs)
        # Short memory, because weights change fast; the filters that follow learn the scale.
        self.norms = nn.ModuleList([nn.BatchNorm2d(width, eps=1e-12, momentum=0.4) for _ in range(num_convs)])
        for norm in self.norms:
            norm.weight.requires_grad = False

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, num_in, h, w)`` to ``(N, width, h // 2, w // 2)``."""
        features = first = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](images), 2)))
        for i in range(1, len(self.convs)):
            features = self.norms[i](self.convs[i](features))
            if i == len(self.convs) - 1 >= 2:
                features = features + first
            features = F.gelu(features)
        return features
