"""Random erasing, MixUp and CutMix of whole batches, and the loss for mixed labels.

A box has four numbers: its top and left pixel, and the ones behind its bottom and right. It may be empty.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

AREAS, RATIOS = (0.02, 0.33), (0.3, 3.3)
"""Area that is erased, as a share of the image, and its height by width: the ranges of torchvision."""


def sample_erased(num_images: int, size: int, probability: float, generator: torch.Generator) -> Tensor:
    """Sample the box to erase in each image, ``(N, 4)``, int64; area and logarithm of the ratio are uniform.

    A side longer than the image is cut to it.
    """
    area, ratio, *place, chance = torch.rand(5, num_images, generator=generator, dtype=torch.float64)
    area = (AREAS[0] + (AREAS[1] - AREAS[0]) * area) * size**2
    ratio = RATIOS[0] * (ratio * math.log(RATIOS[1] / RATIOS[0])).exp()
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt())).round().clamp(max=size)
    first = (torch.stack(place) * (size - sides + 1)).floor()
    return torch.cat((first, first + sides * (chance < probability))).T.long()


def sample_mixing(num_images: int, size: int, mixup: float, cutmix: float, *key: int) -> tuple[Tensor, Tensor]:
    """Sample, as a function of a key, the other image of each image, ``(N,)``, int64, and how they are mixed.

    The latter are ``(N, 5)``, float32: the box that shows the other image, and the share of the image outside of it.
    MixUp has an empty box, and CutMix a share of 1.
    """
    rng = np.random.default_rng(key)
    others = rng.permutation(num_images)
    is_cut = rng.random(num_images) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = np.where(is_cut, cutmix, mixup)
    share = rng.beta(alpha, alpha)
    half = np.floor(np.sqrt(1 - share) * size / 2) * is_cut
    centre = rng.integers(size, size=(2, num_images))
    box = np.concatenate((centre - half, centre + half)).clip(0, size)
    return torch.from_numpy(others), torch.from_numpy(np.stack((*box, np.where(is_cut, 1, share)), 1)).float()


def in_boxes(boxes: Tensor, size: int) -> Tensor:
    """Return which pixels are in boxes ``(n, 4)``, as ``(n, size, size, 1)``, bool."""
    places = torch.arange(size, device=boxes.device)
    top, left, bottom, right = boxes.T[..., None]
    is_row, is_column = (places >= top) & (places < bottom), (places >= left) & (places < right)
    return torch.logical_and(is_row[:, :, None], is_column[:, None, :])[..., None]


def fill(images: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Fill a box of each image ``(n, size, size, 3)``, perhaps beyond its edges, with a colour ``(3,)``."""
    return torch.where(in_boxes(boxes, images.shape[1]), colour, images)


def mix(images: Tensor, others: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images ``(n, size, size, 3)``, uint8, with others: MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    ``mixing`` is that of ``sample_mixing``, ``(n, 5)``. Returns the mixed images, rounded to uint8, and the share of
    each image in its own, ``(n, 1)``, float32.
    """
    weights = mixing[:, 4, None, None, None] * ~in_boxes(mixing[:, :4], images.shape[1])
    mixed = (images * weights).add_(others * (1 - weights)).round_().byte()
    return mixed, weights.mean((1, 2))


def hard_labels(labels: Tensor) -> Tensor:
    """Return the class of each image, ``(n,)``, int64: of shares ``(n, num_classes)``, that of the largest."""
    return labels.argmax(1) if labels.ndim == 2 else labels


def mean_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the cross-entropy, a scalar, for labels ``(n,)`` or shares ``(n, num_classes)``: the mean over images.

    With ``weights`` of the classes it is the weighted mean, also for shares, which torch divides by ``n`` instead.
    """
    if labels.ndim == 1 and weights is not None and label_smoothing:  # for which torch's own loss waits for a GPU
        labels = labels[:, None] == torch.arange(len(weights), device=labels.device)
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    labels = labels.to(logits.dtype)  # from the precision of the Trainer
    loss = F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    # As a product of matrices, autocast would round it.
    return loss if weights is None else loss * len(labels) / (labels * weights).sum()
