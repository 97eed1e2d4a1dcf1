"""Augmentations of whole batches of bytes, without a loop over images. Their chance is drawn an epoch at a time.

A batch is held as ``(N, height, width, 3)``: a row of pixels is then one run of bytes, wherever a crop begins.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Flip = Literal["none", "random", "alternating"]


def generator_for(*key: int) -> torch.Generator:
    """Make a generator whose numbers are a pure function of a key.

    Args:
        key: Numbers of 0 or more, such as the seed and the epoch. Zeros at the end make no difference.

    Returns:
        A generator on the CPU, the same for the same key on any machine.
    """
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))


class Draws(NamedTuple):
    """What an epoch does to each image; row ``i`` belongs to image ``i``, whatever its batch or its rank."""

    corners: Tensor | None
    """``(N, 2)``, int64: the top row and left column of the crop in the padded image."""
    flips: Tensor | None
    """``(N,)``, int64: 1 where the image is mirrored."""
    holes: Tensor | None
    """``(N, 2)``, int64: the row and column in the middle of the square that is painted over."""

    def at(self, index: Tensor) -> "Draws":
        """Give the rows of a batch.

        Args:
            index: ``(n,)``, int64.

        Returns:
            The same with n rows.
        """
        return Draws(*(None if part is None else part.index_select(0, index) for part in self))

    def to(self, device: torch.device) -> "Draws":
        """Move it, once an epoch.

        Args:
            device: Where the images are.

        Returns:
            The same there.
        """
        return Draws(*(None if part is None else part.to(device) for part in self))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to the images of a training.

    Attributes:
        crop_padding: Pixels by which each side is padded by reflection before a part of the old size is cut out, at
            a place drawn for each image; 0 for none.
        flip: ``random`` mirrors each image with a chance of one half; ``alternating`` mirrors a random half of the
            images in the first epoch, the other half in the next, and so on, so that two epochs in a row show each
            image both ways (arXiv 2404.00498).
        cutout: Side in pixels of a square, in the middle of a random pixel, that is painted over with the mean
            colour (arXiv 1708.04552); what reaches over the edge is lost. 0 for none.
    """

    crop_padding: int = 0
    flip: Flip = "none"
    cutout: int = 0

    def draw(self, num_images: int, size: int, *, seed: int, epoch: int) -> Draws:
        """Draw what one epoch does to each image.

        Args:
            num_images: N, how many there are.
            size: Their height and width.
            seed: The run's seed, 0 or more.
            epoch: The epoch, from 0.

        Returns:
            The same for the same arguments, on any machine.
        """
        generator = generator_for(seed, epoch, 1)
        corners = flips = holes = None
        if self.crop_padding:
            corners = torch.randint(2 * self.crop_padding + 1, (num_images, 2), generator=generator)
        if self.flip == "random":
            flips = torch.randint(2, (num_images,), generator=generator)
        elif self.flip == "alternating":
            flips = torch.randint(2, (num_images,), generator=generator_for(seed, 0, 2)) ^ (epoch % 2)
        if self.cutout:
            holes = torch.randint(size, (num_images, 2), generator=generator)
        return Draws(corners, flips, holes)


def pad(images: Tensor, padding: int) -> Tensor:
    """Pad images by reflection, which repeats no pixel of the edge.

    Args:
        images: ``(N, height, width, 3)``, uint8.
        padding: Pixels on each side, below the image's size.

    Returns:
        ``(N, height + 2 padding, width + 2 padding, 3)``, uint8.
    """
    for dim in (1, 2):
        size = images.shape[dim]
        place = torch.arange(-padding, size + padding, device=images.device).abs()
        images = images.index_select(dim, torch.minimum(place, 2 * (size - 1) - place))
    return images


def crop(padded: Tensor, index: Tensor, corners: Tensor, size: int) -> Tensor:
    """Take images out of a padded data set, each from its own corner.

    Args:
        padded: ``(N, height, width, 3)``, uint8, contiguous.
        index: ``(n,)``, int64: which images.
        corners: ``(n, 2)``, int64: the top row and left column of each.
        size: Height and width of what is taken.

    Returns:
        ``(n, size, size, 3)``, uint8.
    """
    _, height, width, channels = padded.shape
    # Every run of `size` pixels that lies in the memory, beginning at any byte: rows that overlap, and no copy.
    run = size * channels
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    first = (index * height + corners[:, 0]) * width + corners[:, 1]
    rows = first[:, None] + torch.arange(size, device=padded.device) * width
    return runs.index_select(0, rows.view(-1) * channels).view(len(index), size, size, channels)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror some images, left to right.

    Args:
        images: ``(n, height, width, 3)``.
        flips: ``(n,)``, int64: 1 for those to mirror, 0 for the others.

    Returns:
        The same shape.
    """
    both = torch.cat((images, images.flip(2)))  # taken from by index: twice as fast as a choice per byte
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)


def cutout(images: Tensor, holes: Tensor, size: int, colour: Tensor) -> Tensor:
    """Paint a square over in each image.

    Args:
        images: ``(n, height, width, 3)``, uint8.
        holes: ``(n, 2)``, int64: row and column of the square's middle (of an even side, the later of the two).
        size: Its side.
        colour: ``(3,)``, uint8.

    Returns:
        The same shape; the squares are cut at the edge.
    """
    rows, columns = (
        torch.arange(length, device=images.device) - (holes[:, i, None] - size // 2)
        for i, length in enumerate(images.shape[1:3])
    )
    rows, columns = ((place >= 0) & (place < size) for place in (rows, columns))
    return torch.where((rows[:, :, None] & columns[:, None, :]).unsqueeze(3), colour, images)


def resize(images: Tensor, size: int) -> Tensor:
    """Make images smaller or larger, bilinear with antialiasing.

    Args:
        images: ``(N, 3, height, width)``, float.
        size: The new height and width.

    Returns:
        ``(N, 3, size, size)``; the images themselves where they have that size.
    """
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
