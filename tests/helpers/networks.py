"""Networks that are not part of the project."""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cifar_lit.networks import Network, TutorialCNN


def overfit(build: Callable[[], nn.Module], *, size: int, lr: float, num_steps: int) -> float:
    """Train a network on 32 images of noise, and return the accuracy on them."""
    torch.manual_seed(0)
    images, labels, net = torch.randn(32, 3, size, size), torch.arange(32) % 10, build()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(images), labels))
        optimizer.step()
    return float((net(images).argmax(1) == labels).float().mean())


class WideNet(Network):
    """A network with an option of its own.

    Args:
        num_classes: Number of logits.
        width: Channels of its one convolution.
    """

    def __init__(self, num_classes: int, *, width: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.last = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.conv(images).mean((2, 3)))
        return logits


class DropoutNet(TutorialCNN):
    """Drops inputs at random in each step."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.nn.functional.dropout(images, 0.3, self.training))


class NoisyNet(TutorialCNN):
    """Draws from the generators of Python and NumPy in each step."""

    def forward(self, images: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand()) if self.training else 0.0
        return super().forward(images + 0.1 * noise)


class Sized(nn.Module):
    """Takes images of the size alone for which it was built.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images.
        width: Channels.
    """

    def __init__(self, num_classes: int, image_size: int, width: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.last = nn.Linear(width * image_size**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.conv(images).flatten(1))
        return logits
