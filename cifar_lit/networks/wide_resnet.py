"""WideResNet: few residual blocks with many channels."""

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.errors import require
from cifar_lit.networks.base import Network
from cifar_lit.networks.resnet import conv3x3, init_he


class WideResNet(Network):
    """WRN-depth-widen_factor (arXiv 1605.07146) without dropout; by default WRN-28-10, the paper's for CIFAR.

    WRN-28-10 has 36.5 M parameters with ten classes, and takes 5.2 G multiplications for 32x32 pixels, nine times those
    of ``ResNet18``; WRN-16-4 has 2.7 M, and takes 0.4 G. Initialised after He et al. (arXiv 1502.01852).

    Args:
        num_classes: Number of logits.
        depth: Convolutions in a row, shortcuts not counted: 6 n + 4, from 10 to 100.
        widen_factor: Multiple of the channels 16, 32 and 64 of the three stages, 1 to 16.
    """

    def __init__(self, num_classes: int = 10, *, depth: int = 28, widen_factor: int = 10) -> None:
        super().__init__()
        is_depth = 10 <= depth <= 100 and depth % 6 == 4
        require("depth", depth, is_depth, "a multiple of 6 plus 4, from 10 to 100, as 16, 28 or 40")
        require("widen_factor", widen_factor, 1 <= widen_factor <= 16, "from 1 to 16")
        self.stem = conv3x3(3, 16)
        self.stages = nn.Sequential()
        widths = [16, *(16 * widen_factor * 2**i for i in range(3))]
        for i, (num_in, num_out) in enumerate(itertools.pairwise(widths), start=1):
            first = WideBlock(num_in, num_out, stride=1 if i == 1 else 2)
            others = (WideBlock(num_out, num_out) for _ in range((depth - 4) // 6 - 1))
            self.stages.add_module(f"stage{i}", nn.Sequential(first, *others))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        init_he(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, height, width)`` to logits ``(N, num_classes)``."""
        features = F.relu(self.norm(self.stages(self.stem(images))), inplace=True)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class WideBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, added to the input, which a 1x1 convolution fits to another shape."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(num_in), conv3x3(num_in, num_out, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(num_out), conv3x3(num_out, num_out)
        self.shortcut = None if num_in == num_out else nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, num_in, h, w)`` to ``(N, num_out, h / stride, w / stride)``, rounded up."""
        activated = F.relu(self.norm1(images))
        features = self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        added: Tensor = features + (images if self.shortcut is None else self.shortcut(activated))
        return added
