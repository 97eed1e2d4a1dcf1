"""Pictures made by code: for trying the project, and its tests, without any data at hand."""

import math

import torch
from torch import Tensor

from cifar_lit.sources.split import Split, SplitName

CLASSES = [
    "disc",
    "square",
    "ring",
    "cross",
    "horizontal stripes",
    "vertical stripes",
    "rising stripes",
    "falling stripes",
    "checkerboard",
    "target",
]


class Synthetic:
    """Ten classes of shapes and textures, 32x32 in colour, drawn anew at each start from a fixed seed.

    Each picture has its own place, size, phase and pair of colours. Which of the two colours is the brighter one is
    a coin's toss, so that no weighted sum of pixels tells much about the class, while a convolution does.

    Args:
        num_train: Training pictures.
        num_test: Test pictures.
        seed: What the pictures are drawn from, 0 or more; the same for the same seed.
    """

    title = "synthetic"
    classes = CLASSES
    has_val = False

    def __init__(self, *, num_train: int = 25_000, num_test: int = 5_000, seed: int = 0) -> None:
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed

    def prepare(self) -> None:
        """Do nothing: the pictures are never stored."""

    def load(self, split: SplitName) -> Split:
        """Draw one part.

        Args:
            split: ``train`` or ``test``.

        Returns:
            Its pictures, with the classes as evenly spread as their number allows.
        """
        num_images = self.num_train if split == "train" else self.num_test
        generator = torch.Generator().manual_seed(2 * self.seed + (split == "test"))
        labels = (torch.arange(num_images) % len(CLASSES))[torch.randperm(num_images, generator=generator)]
        images = torch.empty(num_images, 3, 32, 32, dtype=torch.uint8, memory_format=torch.channels_last)
        for label, name in enumerate(CLASSES):
            chosen = labels == label
            images[chosen] = draw(name, int(chosen.sum()), generator)
        return Split(images, labels)


def draw(name: str, num_images: int, generator: torch.Generator) -> Tensor:
    """Draw pictures of one class.

    Args:
        name: One of ``CLASSES``.
        num_images: How many.
        generator: The source of chance; moves on.

    Returns:
        ``(num_images, 3, 32, 32)``, uint8.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(num_images, *shape, generator=generator) * (high - low) + low

    axis = (torch.arange(32) - 15.5) / 16
    x = axis.view(1, 1, 32) - uniform(-0.3, 0.3, 1, 1)
    y = axis.view(1, 32, 1) - uniform(-0.3, 0.3, 1, 1)
    mask = _mask(name, x, y, size=uniform(0.35, 0.65, 1, 1), frequency=2 * math.pi * uniform(2, 4, 1, 1))

    middle = uniform(0.25, 0.75, 1, 1, 1)
    half_contrast = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, -0.3, 0.3)
    inside = middle + half_contrast + uniform(-0.15, 0.15, 3, 1, 1)
    outside = middle - half_contrast + uniform(-0.15, 0.15, 3, 1, 1)
    images = torch.where(mask.unsqueeze(1), inside, outside)
    images += 0.1 * torch.randn(images.shape, generator=generator)
    return images.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _mask(name: str, x: Tensor, y: Tensor, *, size: Tensor, frequency: Tensor) -> Tensor:
    """Say which pixels belong to the figure: ``x`` (N, 1, 32) and ``y`` (N, 32, 1) give (N, 32, 32)."""
    radius = (x**2 + y**2).sqrt()
    far = torch.maximum(x.abs(), y.abs())
    near = torch.minimum(x.abs(), y.abs())
    nothing = torch.zeros_like(radius)
    masks = {
        "disc": lambda: radius < size,
        "square": lambda: far < size,
        "ring": lambda: (radius < size) & (radius > 0.55 * size),
        "cross": lambda: (near < 0.35 * size) & (far < 1.1 * size),
        "horizontal stripes": lambda: torch.sin(frequency * y) + nothing > 0,
        "vertical stripes": lambda: torch.sin(frequency * x) + nothing > 0,
        "rising stripes": lambda: torch.sin(frequency * (x + y) / math.sqrt(2)) > 0,
        "falling stripes": lambda: torch.sin(frequency * (x - y) / math.sqrt(2)) > 0,
        "checkerboard": lambda: torch.sin(frequency * x) * torch.sin(frequency * y) > 0,
        "target": lambda: torch.sin(frequency * radius) > 0,
    }
    return masks[name]()
