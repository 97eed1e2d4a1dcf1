"""A network for the best accuracy per minute: few wide layers, and a first layer that needs no training."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.networks.base import Network
from cifar_lit.networks.winograd import Conv3x3


class FastCNN(Network):
    """Whitened 2x2 patches, stages of 3x3 convolutions that each halve the image, the largest value of each channel.

    It follows airbench94_muon.py (arXiv 2404.00498 and https://github.com/KellerJordan/cifar10-airbench): a frozen
    first layer whose filters are the eigenvectors of the training images' patches, filters that begin as the identity,
    batch norm without a scale and with a short memory, GELU. What differs: the image is padded so that its size halves
    evenly (32, 16, 8, 4), which suits Winograd's convolution, and any size is taken, so that a training can begin with
    small images; the logits are scaled so that one learning rate suits the last layer and the biases.

    Args:
        num_classes: How many logits come out.
        widths: Channels of each stage; the image must be at least ``2 ** len(widths)`` pixels wide.
        num_convs: Convolutions in each stage; from three on, the last one's output is added to the first one's.
    """

    def __init__(self, num_classes: int = 10, *, widths: Sequence[int] = (64, 256, 256), num_convs: int = 2) -> None:
        super().__init__()
        stages: list[tuple[str, nn.Module]] = []
        num_in = 24  # 12 eigenvectors of patches of 3 channels at 2x2 pixels, and their negatives
        self.whiten = nn.Conv2d(3, num_in, kernel_size=2)
        self.whiten.weight.requires_grad = False
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)
        for i, width in enumerate(widths, start=1):
            stages.append((f"stage{i}", Stage(num_in, width, num_convs=num_convs)))
            num_in = width
        self.stages = nn.Sequential(OrderedDict(stages))
        self.head = nn.Linear(num_in, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=HEAD_STD)

    def prepare(self, images: Tensor) -> None:
        """Make the first layer whiten the patches of these images.

        Args:
            images: ``(n, 3, 32, 32)``, float32, normalised.
        """
        patches = F.unfold(images, kernel_size=2, stride=2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T.view(-1, 3, 2, 2)
        self.whiten.weight.data.copy_(torch.cat((filters, -filters)))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: ``(N, 3, height, width)``, float32; 32x32, or smaller while training.

        Returns:
            ``(N, num_classes)``, float32.
        """
        whitened = F.gelu(self.whiten(F.pad(images, (0, 1, 0, 1), mode="replicate")))
        features = self.stages(whitened).amax((2, 3))
        logits: Tensor = self.head(features) * (HEAD_SCALE / features.shape[1])
        return logits


HEAD_STD = 0.28
HEAD_SCALE = 3.6
"""Together they set how fast the last layer learns beside the biases, which have the same learning rate.

The source has a spread of 1, a scale of 1 and 12.6 times the biases' rate. A spread of c, a scale of 1 / c and a rate
times c squared make the same steps: with c = 0.28 the rates are equal.
"""


class Stage(nn.Module):
    """A convolution and a pool to half the size, then convolutions at that size.

    Args:
        num_in: Channels that come in.
        width: Channels that come out.
        num_convs: Convolutions in all; what the last of three or more gives is added to what the first one gave.
    """

    def __init__(self, num_in: int, width: int, *, num_convs: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList([Conv3x3(num_in if i == 0 else width, width) for i in range(num_convs)])
        self.norms = nn.ModuleList([_norm(width) for _ in range(num_convs)])

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: ``(N, num_in, height, width)``.

        Returns:
            Of half the height and width.
        """
        features = first = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](images), 2)))
        for i in range(1, len(self.convs)):
            features = self.norms[i](self.convs[i](features))
            if i == len(self.convs) - 1 >= 2:
                features = features + first
            features = F.gelu(features)
        return features


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)  # a short memory: the weights move fast
    norm.weight.requires_grad = False  # the scale of what follows is learned by the next filters
    return norm
