"""Max-pooling that keeps little for the backward pass, for training on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def max_pool(images: Tensor) -> Tensor:
    """Max-pool ``(N, channels, h, w)`` to ``(N, channels, h // 2, w // 2)``, with torch's values and gradients.

    For the backward pass torch keeps the input and an int64 for each output. In a training on a CPU only the places of
    the maxima are kept here, as int16: 2 bytes for each output in place of 24 in float32, and of 16 in bfloat16.
    """
    is_training = torch.is_grad_enabled() and not torch.compiler.is_compiling() and images.device.type == "cpu"
    return MaxPool.apply(images) if is_training else F.max_pool2d(images, 2)  # type: ignore[no-any-return]


class MaxPool(torch.autograd.Function):
    """``F.max_pool2d(images, 2)`` that keeps the places of the maxima alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """Return the maxima of ``(N, channels, h, w)``."""
        values, places = F.max_pool2d(images, 2, return_indices=True)
        ctx.size = images.shape[2:]
        ctx.save_for_backward(places.to(torch.int16 if ctx.size.numel() <= 2**15 else torch.int32))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Put each gradient where its maximum was, and zeros elsewhere."""
        (places,) = ctx.saved_tensors
        return F.max_unpool2d(gradients[0], places.long(), 2, output_size=list(ctx.size))
