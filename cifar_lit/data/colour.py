"""Colour jitter and TrivialAugment of whole batches of images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Contrast", "Color"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""Those of torchvision's ``TrivialAugmentWide``, with its strengths."""


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation of images ``(n, height, width, 3)``, uint8, in that order.

    Each of the ``factors`` ``(n, 3)`` is the weight of the image in a mean with black, its mean grey or its grey, as in
    torchvision: at least 0, and 1 changes nothing. The result is rounded once.
    """
    brightness, contrast, saturation = factors.T[..., None, None, None]
    pixels: Tensor = (images * brightness).clamp_(0, 255)
    mean = _grey(pixels).mean((1, 2), keepdim=True)
    pixels.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255)
    grey = _grey(pixels)
    pixels.mul_(saturation).add_(grey * (1 - saturation)).clamp_(0, 255)
    return pixels.round_().byte()


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(-1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[..., None]


def sample_operations(num_images: int, generator: torch.Generator) -> Tensor:
    """Sample the operation of each image, and its strength: 31 levels in both directions, ``(N, 2)``, float32."""
    chosen, level, side = torch.rand(3, num_images, generator=generator)
    strength = (level * 31).floor() / 30 * torch.where(side < 0.5, 1, -1)
    return torch.stack(((chosen * len(OPERATIONS)).floor(), strength), 1)


def trivial_augment(images: Tensor, operations: Tensor) -> Tensor:
    """Change each image ``(n, size, size, 3)``, uint8, by one operation (arXiv 2103.10158).

    The columns of ``operations`` ``(n, 2)``, float32, are a position in ``OPERATIONS`` and a strength in [-1, 1], whose
    sign counts where there are two directions. Each operation is computed for all images: how many have it is known to
    the device alone.
    """
    from torchvision.transforms.v2 import functional as tv

    chosen, strength = operations.T

    def only(name: str, value: Tensor | float = 1.0) -> Tensor:
        return torch.where(chosen == OPERATIONS.index(name), value, 0.0)[:, None, None, None]

    images = _warp(images, *(only(name, strength) for name in OPERATIONS[1:6]))
    images = jitter(images, torch.cat([1 + only(name, 0.99 * strength) for name in OPERATIONS[6:9]], 1).flatten(1))
    planes = images.permute(0, 3, 1, 2)
    factor = 1 + only("Sharpness", 0.99 * strength)
    planes = (planes * factor).add_(_blur(planes) * (1 - factor)).clamp_(0, 255).round_().byte()
    bits = only("Posterize", (6 * strength.abs()).round()).byte()
    planes = (planes >> bits << bits).contiguous()  # which the next ones read much faster
    planes = torch.where(planes >= 256 - only("Solarize", 1 + 255 * strength.abs()), 255 - planes, planes)
    for name, function in (("AutoContrast", tv.autocontrast), ("Equalize", tv.equalize)):
        planes = torch.where(only(name).bool(), function(planes), planes)
    return planes.permute(0, 2, 3, 1).contiguous()


def _blur(planes: Tensor) -> Tensor:
    """Return what torchvision's ``adjust_sharpness`` returns for 0; that copies its filter to a GPU, which waits."""
    blurred = planes.float()
    inner = blurred[..., 1:-1, 1:-1]
    inner.copy_(((9 * F.avg_pool2d(blurred, 3, stride=1) + 4 * inner) / 13).round_())
    return blurred


def _warp(images: Tensor, *strengths: Tensor) -> Tensor:
    """Shear, shift and turn images: the nearest pixel, and black where there is none."""
    size = images.shape[1]
    shear_x, shear_y, shift_x, shift_y, turn = (strength[..., 0] for strength in strengths)
    sin, cos, middle = (math.radians(135) * turn).sin(), (math.radians(135) * turn).cos(), (size - 1) / 2
    x = torch.arange(size, device=images.device) - middle
    y = x[:, None]
    column = cos * x - sin * y + 0.99 * shear_x * (y + size / 2) - (32 * shift_x).trunc() + middle
    row = sin * x + cos * y + 0.99 * shear_y * (x + size / 2) - (32 * shift_y).trunc() + middle
    row, column = row.round().long(), column.round().long()
    is_inside = ((row >= 0) & (row < size) & (column >= 0) & (column < size))[..., None]
    rows = torch.arange(len(images), device=images.device)[:, None, None] * size + row.clamp(0, size - 1)
    place = rows * size + column.clamp(0, size - 1)
    return images.view(-1, 3).index_select(0, place.view(-1)).view(images.shape) * is_inside
