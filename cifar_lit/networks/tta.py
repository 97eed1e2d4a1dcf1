"""Test-time augmentation (TTA): the mean of the logits over several versions of each image."""

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

TTA = Literal["mirror", "mirror_shift"]
TTA_MODES = ("none", *get_args(TTA))


def tta_logits(net: nn.Module, images: Tensor, mode: TTA, *, plain: Tensor | None = None) -> Tensor:
    """Return the mean of the logits over versions of images ``(N, 3, height, width)`` (arXiv 2404.00498).

    ``mirror``: the image and its mirror image. ``mirror_shift``: these with weight one half, and both shifted by one
    pixel, up and left and down and right, with weight one quarter each. ``plain`` are the logits of the images as they
    are, if they are there.
    """

    def mirrored(images: Tensor, logits: Tensor | None = None) -> Tensor:
        return 0.5 * ((net(images) if logits is None else logits) + net(images.flip(3)))  # type: ignore[no-any-return]

    if mode == "mirror":
        return mirrored(images, plain)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = (mirrored(padded[:, :, i : i + height, i : i + width]) for i in (0, 2))
    return 0.5 * mirrored(images, plain) + 0.25 * sum(shifted, images.new_zeros(()))
