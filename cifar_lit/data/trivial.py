"""TrivialAugment (arXiv 2103.10158) of whole batches, with the operations and strengths of torchvision."""

import math

import torch
from torch import Tensor

from cifar_lit.data.augment import jitter

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Contrast", "Color"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""Those of torchvision's ``TrivialAugmentWide``."""


def trivial_augment(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Change each image ``(n, size, size, 3)``, uint8, by one of ``OPERATIONS``.

    Each operation is computed for all images, and changes its own: the sizes of groups would have to be read from the
    device. ``operations`` ``(n,)``, int64, are positions in ``OPERATIONS``; ``strengths`` ``(n,)`` are from -1 to 1,
    with a sign where there are two directions.
    """
    from torchvision.transforms.v2 import functional as tv  # noqa: PLC0415

    def only(name: str, value: Tensor | float = 1.0) -> Tensor:
        return torch.where(operations == OPERATIONS.index(name), value, 0.0)

    images = _warp(images, *(only(name, strengths) for name in OPERATIONS[1:6]))
    factors = torch.stack([1 + only(name, 0.99 * strengths) for name in OPERATIONS[6:9]], 1)
    images = jitter(images, factors)
    factor = 1 + only("Sharpness", 0.99 * strengths)
    blurred = tv.adjust_sharpness(images.permute(0, 3, 1, 2), 0.0).permute(0, 2, 3, 1)
    images = torch.lerp(blurred.float(), images.float(), factor[:, None, None, None]).clamp_(0, 255).round_().byte()
    bits = only("Posterize", (6 * strengths.abs()).round()).byte()[:, None, None, None]
    images = images >> bits << bits
    threshold = 256 - only("Solarize", 1 + 255 * strengths.abs())[:, None, None, None]
    images = torch.where(images >= threshold, 255 - images, images)
    for name, function in (("AutoContrast", tv.autocontrast), ("Equalize", tv.equalize)):
        changed = function(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        images = torch.where(only(name).bool()[:, None, None, None], changed, images)
    return images


def _warp(images: Tensor, *strengths: Tensor) -> Tensor:
    """Shear, shift and rotate images: each takes the nearest pixel, and is black where there is none."""
    size = images.shape[1]
    shear_x, shear_y, shift_x, shift_y, turn = (strength[:, None, None] for strength in strengths)
    sin, cos = (math.radians(135) * turn).sin(), (math.radians(135) * turn).cos()
    x = torch.arange(size, device=images.device) - (size - 1) / 2
    y = x[:, None]
    column = cos * x - sin * y + 0.99 * shear_x * (y + size / 2) - (32 * shift_x).trunc() + (size - 1) / 2
    row = sin * x + cos * y + 0.99 * shear_y * (x + size / 2) - (32 * shift_y).trunc() + (size - 1) / 2
    row, column = row.round().long(), column.round().long()
    is_inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    place = (image * size + row.clamp(0, size - 1)) * size + column.clamp(0, size - 1)
    return images.view(-1, 3).index_select(0, place.view(-1)).view(images.shape) * is_inside[..., None]
