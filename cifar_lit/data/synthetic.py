"""Generated images, to try and test the project without any data."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cifar_lit.data.split import Split, SplitName

Array = npt.NDArray[Any]


class _Plane:
    """The pixels of ``N`` images around the centres of their figures, in pixels; all broadcasts to ``(N, 32, 32)``."""

    def __init__(self, x: Array, y: Array, *, size: Array, period: Array, phase: Array, side: Array) -> None:
        self.x, self.y, self.size, self.period, self.phase, self.side = x, y, size, period, phase, side
        self.radius = np.sqrt(x * x + y * y)
        self.far = np.maximum(abs(x), abs(y))
        self.near = np.minimum(abs(x), abs(y))

    def stripes(self, position: Array) -> Array:
        """Return the distance of a position to the nearest edge of stripes, above 0 in every second stripe."""
        phase = position / self.period + self.phase
        distance: Array = (abs(phase - np.floor(phase) - 0.5) - 0.25) * self.period
        return distance

    def checks(self) -> Array:
        """Return the distance to the nearest edge of a checkerboard, above 0 in every second square."""
        x, y = self.stripes(self.x), self.stripes(self.y)
        return np.maximum(np.minimum(x, y), -np.maximum(x, y))


_FIGURES: dict[str, Callable[[_Plane], Array]] = {
    "disc": lambda p: p.size - p.radius,
    "square": lambda p: 0.9 * p.size - p.far,
    "triangle": lambda p: np.minimum(0.7 * p.size - p.y, (p.y + 1.1 * p.size - 2 * abs(p.x)) / math.sqrt(5)),
    "cross": lambda p: np.minimum(0.3 * p.size - p.near, 1.1 * p.size - p.far),
    "ring": lambda p: 0.22 * p.size - abs(p.radius - 0.85 * p.size),
    "horizontal stripes": lambda p: p.stripes(p.y),
    "vertical stripes": lambda p: p.stripes(p.x),
    "diagonal stripes": lambda p: p.stripes((p.x + p.side * p.y) / math.sqrt(2)),
    "checkerboard": lambda p: p.checks(),
    "target": lambda p: p.stripes(p.radius),
}
"""The distance of each pixel to the edge of the figure of each class, above 0 inside. A mirror changes no class."""
CLASSES = list(_FIGURES)


class Synthetic:
    """Ten classes of shapes and patterns, 32x32 in colour, generated from a fixed seed at each start.

    Position, size, period, colours and light are random, and a pattern may begin with either colour. So a linear
    classifier does poorly, while a convolutional network does well. A mirrored or slightly shifted image keeps its
    class. The arithmetic is float32 without functions that are approximated, so each machine generates the same bytes.
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
        generator = np.random.default_rng([self.seed, split == "test"])
        labels = generator.permutation(np.arange(num_images) % len(CLASSES))
        images = torch.empty(num_images, 32, 32, 3, dtype=torch.uint8)
        for label, name in enumerate(CLASSES):
            (chosen,) = np.nonzero(labels == label)
            images[chosen] = torch.from_numpy(_sample(name, len(chosen), generator)).permute(0, 2, 3, 1)
        return Split(images, torch.from_numpy(labels))


def _sample(name: str, num_images: int, generator: np.random.Generator) -> Array:
    """Return random images of one of ``CLASSES``: ``(num_images, 3, 32, 32)``, uint8."""

    def uniform(low: float, high: float, num_channels: int = 1) -> Array:
        return generator.random((num_images, num_channels, 1, 1), dtype=np.float32) * (high - low) + low

    def sign(plus: float) -> Array:
        return np.where(uniform(0, 1) < plus, np.float32(1), np.float32(-1))

    axis = np.arange(32, dtype=np.float32) - 15.5
    across, down = axis.reshape(1, 32), axis.reshape(32, 1)
    x, y = across - uniform(-4.5, 4.5), down - uniform(-4.5, 4.5)
    size, period, phase = uniform(7, 10), uniform(6.4, 10), uniform(0, 1)
    plane = _Plane(x, y, size=size, period=period, phase=phase, side=sign(0.5))
    coverage = np.clip(_FIGURES[name](plane) + 0.5, 0, 1)  # edges are one pixel wide

    contrast = sign(0.88) * uniform(80, 120)
    inside, outside = (80 + side * contrast + uniform(-35, 35, 3) for side in (0.5, -0.5))
    light = uniform(-1, 1) * across + uniform(-1, 1) * down
    images: Array = np.clip(outside + light + coverage * (inside - outside), 0, 255).astype(np.uint8)
    return images
