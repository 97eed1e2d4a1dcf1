"""Test-time views: several looks at each image, and the mean of what the network says to them."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Views = Literal["mirror", "mirror_shift"]
"""Which views of an image a test takes the mean over."""


def mean_over_views(net: nn.Module, images: Tensor, views: Views) -> Tensor:
    """Compute the mean of the logits over views of each image, as in arXiv 2404.00498.

    Args:
        net: What gives logits for images.
        images: ``(N, 3, height, width)``.
        views: ``mirror``, the image and its mirror image; ``mirror_shift``, these for half of the mean, and
            both moved by one pixel up and left, and down and right, for the other half.

    Returns:
        ``(N, num_classes)``.
    """

    def mirrored(images: Tensor) -> Tensor:
        return 0.5 * (net(images) + net(images.flip(3)))  # type: ignore[no-any-return]

    if views == "mirror":
        return mirrored(images)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = (mirrored(padded[:, :, i : i + height, i : i + width]) for i in (0, 2))
    return 0.5 * mirrored(images) + 0.25 * sum(moved, images.new_zeros(()))
