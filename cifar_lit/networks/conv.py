"""A network that is the tutorial's by default and ``FastCNN`` at the other end, for the steps between them."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cifar_lit.errors import require
from cifar_lit.networks.base import Network
from cifar_lit.networks.fast import HEAD_SCALE, HEAD_STD, check_sizes, whitening_filters

ActivationName = Literal["none", "relu", "gelu"]
NormName = Literal["none", "batch", "shift"]
HeadName = Literal["linear", "pooled"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
HIDDEN = 64
"""Features between the two linear layers of the tutorial's head."""


class ConvNet(Network):
    """Blocks of convolutions that each halve the image, then a head. The recipes of the ladder change it step by step.

    A block is a convolution, max-pooling, normalisation and activation, then further convolutions with normalisation
    and activation. With the defaults the network is ``TutorialCNN``: 145,578 parameters, the same initial weights for
    the same seed, the same logits. With ``widths=[64, 256, 256], kernel_size=3, num_convs=2, activation="gelu",
    norm="shift", head="pooled", whiten=True, identity=True`` it is ``FastCNN``.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images.
        widths: Channels of each block, 1 to 4,096, in one to five blocks.
        kernel_size: Height and width of the filters: 3, 5 or 7.
        num_convs: Convolutions of each block, 1 to 64, one number for all or a list.
        activation: After each convolution, and between linear layers.
        norm: batch is batch normalisation (arXiv 1502.03167). shift is the same without a learned scale, and with a
            short memory, as in ``FastCNN``.
        head: linear flattens the features for two linear layers, which takes images of ``image_size`` alone. pooled is
            global max-pooling and one linear layer whose logits are scaled, as in ``FastCNN``, for images of any size.
        whiten: Begin with filters that whiten the 2x2 patches of training images, and are not trained.
        identity: Initialise the convolutions so that they pass on their input (arXiv 1706.00388).

    Raises:
        UserError: For values outside these ranges, before anything is built.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        *,
        widths: Sequence[int] = (32, 32, 64),
        kernel_size: int = 5,
        num_convs: int | Sequence[int] = 1,
        activation: ActivationName = "none",
        norm: NormName = "none",
        head: HeadName = "linear",
        whiten: bool = False,
        identity: bool = False,
    ) -> None:
        super().__init__()
        _check_names(kernel_size=kernel_size, activation=activation, norm=norm, head=head)
        depths = check_sizes(widths, num_convs, kernel_size)
        self.stem = _whitening(ACTIVATIONS[activation]) if whiten else nn.Sequential()
        self.blocks = nn.Sequential()
        for i, (num_in, width) in enumerate(itertools.pairwise([24 if whiten else 3, *widths])):
            layers = _block_layers(num_in, width, kernel_size, depths[i], ACTIVATIONS[activation], norm)
            self.blocks.add_module(f"block{i + 1}", nn.Sequential(*layers))
        if identity:
            for conv in (module for module in self.blocks.modules() if isinstance(module, nn.Conv2d)):
                nn.init.dirac_(conv.weight.data[: conv.in_channels])
        self.head, self.scale = nn.Sequential(), 1.0  # of the logits
        if head == "pooled":
            linear = nn.Linear(widths[-1], num_classes, bias=False)
            nn.init.normal_(linear.weight, std=HEAD_STD)
            self.head.extend([GlobalMaxPool(), linear])
            self.scale = HEAD_SCALE / widths[-1]
        else:
            side = max(1, image_size // 2 ** len(widths))  # of a smaller image, pooling says what is wrong
            hidden = nn.Linear(widths[-1] * side * side, HIDDEN)
            self.head.extend([nn.Flatten(), hidden, ACTIVATIONS[activation](), nn.Linear(HIDDEN, num_classes)])

    def prepare(self, images: Tensor) -> None:
        """Set the filters of the first layer from ``images``, if it whitens."""
        for layer in self.stem.children():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.copy_(whitening_filters(images))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, height, width)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits if self.scale == 1 else logits * self.scale


class GlobalMaxPool(nn.Module):
    """Maps features ``(N, channels, height, width)`` to their maxima ``(N, channels)``."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the maximum of each channel."""
        return features.amax((2, 3))


def _check_names(**given: object) -> None:
    choices: dict[str, tuple[object, ...]] = {"kernel_size": (3, 5, 7)}
    choices |= {"activation": get_args(ActivationName), "norm": get_args(NormName), "head": get_args(HeadName)}
    for name, value in given.items():
        require(name, value, value in choices[name], f"one of {', '.join(map(str, choices[name]))}")


def _whitening(activation: type[nn.Module]) -> nn.Sequential:
    conv = nn.Conv2d(3, 24, kernel_size=2)
    conv.weight.requires_grad = False
    torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), conv, activation())


def _block_layers(
    num_in: int, width: int, kernel_size: int, num_convs: int, activation: type[nn.Module], norm: NormName
) -> Iterator[nn.Module]:
    for i in range(num_convs):
        # The shift of a normalisation takes the place of the bias.
        yield nn.Conv2d(width if i else num_in, width, kernel_size, padding=kernel_size // 2, bias=norm == "none")
        if i == 0:
            yield nn.MaxPool2d(2)
        if norm == "batch":
            yield nn.BatchNorm2d(width)
        elif norm == "shift":
            layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
            layer.weight.requires_grad = False
            yield layer
        if activation is not nn.Identity:
            yield activation()
