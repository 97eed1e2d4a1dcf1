"""ResNet-18 for small images: the network that most CIFAR-10 baselines are compared with."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.errors import require
from cifar_lit.networks.base import Network
from cifar_lit.networks.winograd import Conv3x3


def conv3x3(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias; with 128 channels or more, Winograd's is faster (one core, AVX2)."""
    if stride == 1 and min(num_in, num_out) >= 128:
        return Conv3x3(num_in, num_out)
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)


def init_he(net: nn.Module) -> None:
    """Initialise all convolutions from a normal distribution whose variance keeps that of gradients (1502.01852)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet18(Network):
    """ResNet-18 (arXiv 1512.03385) with a stem for small images: a 3x3 convolution, stride 1, no pooling.

    So it is in public baselines, as https://github.com/kuangliu/pytorch-cifar; the paper's own for CIFAR-10 are
    narrower. With ten classes it has 11,173,962 parameters, and takes 0.56 G multiplications for 32x32 pixels. The
    parameters have the names of ``torchvision.models.resnet18``. Initialised after He et al. (arXiv 1502.01852).

    Args:
        num_classes: Number of logits.
        width: Channels of the first of four stages, a multiple of 8 up to 512; the next has twice as many, and so on.
    """

    def __init__(self, num_classes: int = 10, *, width: int = 64) -> None:
        super().__init__()
        # Of others, as 4 and 6, torch 2.14's backward pass ends in a segmentation fault (channels last, AVX2).
        require("width", width, 8 <= width <= 512 and width % 8 == 0, "a multiple of 8, from 8 to 512")
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**i for i in range(4)]
        for i, (num_in, num_out) in enumerate(itertools.pairwise([width, *widths]), start=1):
            first = BasicBlock(num_in, num_out, stride=1 if i == 1 else 2)
            self.add_module(f"layer{i}", nn.Sequential(first, BasicBlock(num_out, num_out)))
        self.fc = nn.Linear(widths[-1], num_classes)
        init_he(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, height, width)`` to logits ``(N, num_classes)``."""
        features = F.relu(self.bn1(self.conv1(images)), inplace=True)
        for i in range(1, 5):
            features = self.get_submodule(f"layer{i}")(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input, which a 1x1 convolution fits to another shape."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(num_in, num_out, stride), nn.BatchNorm2d(num_out)
        self.conv2, self.bn2 = conv3x3(num_out, num_out), nn.BatchNorm2d(num_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or num_in != num_out:
            conv = nn.Conv2d(num_in, num_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(num_out))

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, num_in, h, w)`` to ``(N, num_out, h / stride, w / stride)``, rounded up."""
        features = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features = self.bn2(self.conv2(features))
        return F.relu(features + (images if self.downsample is None else self.downsample(images)), inplace=True)
