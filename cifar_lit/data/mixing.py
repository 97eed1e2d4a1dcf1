"""Boxes of images that are erased or show another image: random erasing, MixUp and CutMix of whole batches.

A box is top, left, bottom and right in pixels, the last two exclusive; it may be empty.
"""

import math

import numpy as np
import torch
from torch import Tensor

AREAS = (0.02, 0.33)
"""Least and largest share of the image that is erased, as in torchvision."""
RATIOS = (0.3, 3.3)
"""Least and largest height by width of what is erased, as in torchvision."""


def sample_erased(num_images: int, size: int, probability: float, generator: torch.Generator) -> Tensor:
    """Sample the box that is erased from each image, ``(N, 4)``, int64; with ``1 - probability`` it is empty.

    Its area and the logarithm of its ratio are uniform. A side that is longer than the image is cut to it.
    """
    area, ratio, *place, chance = torch.rand(5, num_images, generator=generator, dtype=torch.float64)
    area = (AREAS[0] + (AREAS[1] - AREAS[0]) * area) * size**2
    ratio = RATIOS[0] * (ratio * math.log(RATIOS[1] / RATIOS[0])).exp()
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt())).round().clamp(max=size)
    first = (torch.stack(place) * (size - sides + 1)).floor()
    return torch.cat((first, first + sides * (chance < probability))).T.long()


def sample_mixing(
    num_images: int, size: int, *, mixup: float, cutmix: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample how each image is mixed with another one: a pure function of seed and epoch.

    Returns:
        The other image, ``(N,)``, int64, a permutation; the share of the image outside the box, ``(N,)``, float32; and
        the box that shows the other image, ``(N, 4)``, int64. MixUp has an empty box, CutMix a share of 1.
    """
    rng = np.random.default_rng((seed, epoch, 6))
    others = rng.permutation(num_images)
    is_cut = rng.random(num_images) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = np.where(is_cut, cutmix, mixup)
    shares = rng.beta(alpha, alpha)
    half = (np.sqrt(1 - shares) * size / 2).astype(np.int64) * is_cut
    centres = rng.integers(size, size=(2, num_images))
    boxes = np.concatenate((centres - half, centres + half)).clip(0, size).T
    shares = np.where(is_cut, 1, shares).astype(np.float32)
    return torch.from_numpy(others), torch.from_numpy(shares), torch.from_numpy(boxes)


def in_boxes(boxes: Tensor, size: int) -> Tensor:
    """Return which pixels are in the boxes ``(n, 4)``, as ``(n, size, size, 1)``, bool."""
    places = torch.arange(size, device=boxes.device)
    top, left, bottom, right = boxes.T[..., None]
    is_row, is_column = (places >= top) & (places < bottom), (places >= left) & (places < right)
    return (is_row[:, :, None] & is_column[:, None, :])[..., None]


def erase(images: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Fill a box of each image ``(n, size, size, 3)`` with a colour ``(3,)`` (arXiv 1708.04896, there RE-M)."""
    return torch.where(in_boxes(boxes, images.shape[1]), colour, images)


def mix(images: Tensor, others: Tensor, shares: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images with other ones by MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    Args:
        images: ``(n, size, size, 3)``, uint8.
        others: The same of the images that are mixed in.
        shares: ``(n,)``, from 0 to 1: the share of ``images`` outside the boxes.
        boxes: ``(n, 4)``: the boxes that show the others alone.

    Returns:
        The mixed images, rounded to uint8, and the share of ``images`` in them, ``(n,)``, float32.
    """
    weights = shares[:, None, None, None] * ~in_boxes(boxes, images.shape[1])
    mixed = torch.lerp(others.float(), images.float(), weights).round_().byte()
    return mixed, weights.mean((1, 2, 3))
