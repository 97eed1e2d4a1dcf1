"""Test-time augmentation (TTA): the mean of the logits over several versions of each image."""

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

TTA = Literal["mirror", "mirror_shift", "mirror_shift_unsure"]
TTA_MODES = ("none", *get_args(TTA))
UNSURE = 0.5
"""Difference between the two highest probabilities below which ``mirror_shift_unsure`` computes further versions.

It is for networks that were trained with label smoothing of 0.2, of whose images 28 to 33 % are below it. Without
label smoothing probabilities are nearer to 1, and more images stay as they are.
"""


def tta_logits(net: nn.Module, images: Tensor, mode: TTA, *, plain: Tensor | None = None) -> Tensor:
    """Return the mean of the logits over versions of images ``(N, 3, height, width)`` (arXiv 2404.00498).

    ``mirror``: the image and its mirror image. ``mirror_shift``: these with weight one half, and both shifted by one
    pixel, up and left and down and right, with weight one quarter each. ``mirror_shift_unsure``: ``mirror_shift`` for
    the images of which the network is unsure, the logits as they are for the others. ``plain`` are the logits of the
    images as they are, if they are there.
    """
    if mode == "mirror_shift_unsure":
        logits: Tensor = net(images) if plain is None else plain
        highest = logits.softmax(1).topk(2).values
        unsure = (highest[:, 0] - highest[:, 1] < UNSURE).nonzero().flatten()
        if not len(unsure):
            return logits
        averaged = tta_logits(net, images[unsure], "mirror_shift", plain=logits[unsure])
        return logits.index_copy(0, unsure, averaged)

    def mirrored(images: Tensor, logits: Tensor | None = None) -> Tensor:
        return 0.5 * ((net(images) if logits is None else logits) + net(images.flip(3)))  # type: ignore[no-any-return]

    if mode == "mirror":
        return mirrored(images, plain)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = (mirrored(padded[:, :, i : i + height, i : i + width]) for i in (0, 2))
    return 0.5 * mirrored(images, plain) + 0.25 * sum(shifted, images.new_zeros(()))
