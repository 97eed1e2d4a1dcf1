"""Generated images, to try and test the project without any data."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cifar_lit.data.split import Split, SplitName


class _Plane:
    """The pixels of ``N`` images around the centres of their figures; all broadcasts to ``(N, 32, 32)``."""

    def __init__(self, x: Tensor, y: Tensor, *, size: Tensor, frequency: Tensor) -> None:
        self.x, self.y, self.size, self.frequency = x, y, size, frequency
        self.radius = (x**2 + y**2).sqrt()
        self.far = torch.maximum(x.abs(), y.abs())
        self.near = torch.minimum(x.abs(), y.abs())


_FIGURES: dict[str, Callable[[_Plane], Tensor]] = {
    "disc": lambda p: p.radius < p.size,
    "square": lambda p: p.far < p.size,
    "ring": lambda p: (p.radius < p.size) & (p.radius > 0.55 * p.size),
    "cross": lambda p: (p.near < 0.35 * p.size) & (p.far < 1.1 * p.size),
    "horizontal stripes": lambda p: torch.sin(p.frequency * p.y) > 0,
    "vertical stripes": lambda p: torch.sin(p.frequency * p.x) > 0,
    "rising stripes": lambda p: torch.sin(p.frequency * (p.x + p.y) / math.sqrt(2)) > 0,
    "falling stripes": lambda p: torch.sin(p.frequency * (p.x - p.y) / math.sqrt(2)) > 0,
    "checkerboard": lambda p: torch.sin(p.frequency * p.x) * torch.sin(p.frequency * p.y) > 0,
    "target": lambda p: torch.sin(p.frequency * p.radius) > 0,
}
"""Which pixels belong to the figure of each class."""
CLASSES = list(_FIGURES)


class Synthetic:
    """Ten classes of shapes and textures, 32x32 in colour, generated from a fixed seed at each start.

    Position, size, phase and both colours are random. Either colour may be the brighter one, so that a linear
    classifier does poorly, while a convolutional network does well.
    """

    title = "synthetic"
    classes = CLASSES
    has_val = False

    def __init__(self, *, num_train: int = 25_000, num_test: int = 5_000, seed: int = 0) -> None:
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed

    def prepare(self) -> None:
        """Do nothing: the images are not stored."""

    def load(self, split: SplitName) -> Split:
        """Return ``train`` or ``test``, with balanced classes."""
        num_images = self.num_train if split == "train" else self.num_test
        generator = torch.Generator().manual_seed(2 * self.seed + (split == "test"))
        labels = (torch.arange(num_images) % len(CLASSES))[torch.randperm(num_images, generator=generator)]
        images = torch.empty(num_images, 32, 32, 3, dtype=torch.uint8)
        for label, name in enumerate(CLASSES):
            chosen = labels == label
            images[chosen] = _sample(name, int(chosen.sum()), generator).permute(0, 2, 3, 1)
        return Split(images, labels)


def _sample(name: str, num_images: int, generator: torch.Generator) -> Tensor:
    """Return random images of one of ``CLASSES``: ``(num_images, 3, 32, 32)``, uint8."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(num_images, *shape, generator=generator) * (high - low) + low

    axis = (torch.arange(32) - 15.5) / 16
    x = axis.view(1, 1, 32) - uniform(-0.3, 0.3, 1, 1)
    y = axis.view(1, 32, 1) - uniform(-0.3, 0.3, 1, 1)
    plane = _Plane(x, y, size=uniform(0.35, 0.65, 1, 1), frequency=2 * math.pi * uniform(2, 4, 1, 1))
    mask = _FIGURES[name](plane).expand(-1, 32, 32).unsqueeze(1)

    middle = uniform(0.25, 0.75, 1, 1, 1)
    half_contrast = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, -0.3, 0.3)
    inside = middle + half_contrast + uniform(-0.15, 0.15, 3, 1, 1)
    outside = middle - half_contrast + uniform(-0.15, 0.15, 3, 1, 1)
    images = torch.where(mask, inside, outside)
    images += 0.1 * torch.randn(images.shape, generator=generator)
    return images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
