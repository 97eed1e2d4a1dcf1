"""Winograd convolution: 3x3 filters with fewer multiplications, for training on a CPU (arXiv 1509.09308).

The output is divided into tiles of ``m x m`` pixels, each of which depends on a patch of ``(m + 2) x (m + 2)`` pixels.
Patches and filters are transformed, multiplied at each position as matrices over the channels, and transformed back.
For m = 4 that takes 36 products per tile and pair of channels instead of 144. torch 2.14 does not do this on a CPU
without AVX-512. With many channels the transforms pay off: with 256 at 8x8 pixels, forward and backward together take
less than half the time. The result differs by rounding, a relative difference of about 1e-6; in bfloat16 it is about
2e-2, where torch's convolution has 3e-3.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

POINTS = (0, 0.75, -0.75, 1.5, -1.5)
"""To interpolate at, with infinity. Of ten sets tried in bfloat16 this rounds least: half as much as small integers."""
MIN_CHANNELS = 64  # of a layer, in and out, from which the transforms pay off where nothing was measured
PART = 42_000_000
"""Values of the largest tensor that images are computed with together: 170 MB in float32."""
Kernel = Literal["direct", "winograd"]
Kernels = Literal["auto", "direct", "winograd"] | dict[str, Kernel]


class Transforms(NamedTuple):
    """The transforms of a tile size m, each for both axes at once (Kronecker products)."""

    patches: Tensor  # ((m + 2)^2, (m + 2)^2)
    filters: Tensor  # ((m + 2)^2, 9)
    outputs: Tensor  # (m^2, (m + 2)^2)


@functools.cache
def transforms(m: int, dtype: torch.dtype = torch.float32) -> Transforms:
    """Return the transforms of a tile size of 2, 3 or 4, by the Toom-Cook construction."""
    points = np.array(POINTS[: m + 1])
    others = [points[points != point] for point in points]
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    outputs = np.vstack((np.vander(points, m, increasing=True), np.eye(1, m, m - 1))).T
    filters = np.vstack((np.vander(points, 3, increasing=True) / scale, np.eye(1, 3, 2)))
    patches = np.zeros((m + 2, m + 2))
    for row, roots in enumerate([*others, points]):
        patches[row, : len(roots) + 1] = np.poly(roots)[::-1]
    return Transforms(*(torch.from_numpy(np.kron(one, one)).to(dtype) for one in (patches, filters, outputs)))


def tile_size(height: int, width: int) -> int:
    """Return the tile size, 2, 3 or 4, that needs the fewest products for an output of this size."""
    return min((4, 3, 2), key=lambda m: -(-height // m) * -(-width // m) * (m + 2) ** 2)


class Tiling(NamedTuple):
    """How images of one size are divided: their size, the rows and columns of tiles, and the tile size."""

    height: int
    width: int
    rows: int
    columns: int
    m: int

    @classmethod
    def of(cls, height: int, width: int) -> "Tiling":
        """Divide images of this size by the tiles that need the fewest products."""
        m = tile_size(height, width)
        return cls(height, width, -(-height // m), -(-width // m), m)

    def parts(self, num_images: int, num_channels: int) -> list[slice]:
        """Divide a batch into equal parts whose tensors have at most ``PART`` values, or which are one image."""
        most = max(1, PART // (self.rows * self.columns * (self.m + 2) ** 2 * num_channels))
        num_parts = max(1, -(-num_images // most))
        size = max(1, -(-num_images // num_parts))
        return [slice(start, start + size) for start in range(0, num_images, size)]

    def patches(self, images: Tensor) -> Tensor:
        """Transform the patches of images ``(N, h, w, in)``: ``((m + 2)^2, N * rows * columns, in)``."""
        height, width, rows, columns, m = self
        n = m + 2
        padded = F.pad(images, (0, 0, 1, columns * m + 1 - width, 1, rows * m + 1 - height))
        patches = padded.unfold(1, n, m).unfold(2, n, m).permute(4, 5, 0, 1, 2, 3).reshape(n * n, -1)
        return (transforms(m, images.dtype).patches @ patches).view(n * n, -1, images.shape[3])

    def output(self, products: Tensor, num_images: int) -> Tensor:
        """Transform products back into the output, in tiles: ``(N, rows, m, columns, m, out)``, a view."""
        _, _, rows, columns, m = self
        tiles = transforms(m, products.dtype).outputs @ products.view(len(products), -1)
        return tiles.view(m, m, num_images, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)

    def tiles(self, images: Tensor) -> Tensor:
        """Divide images ``(N, h, w, out)`` into tiles ``(N, rows, m, columns, m, out)``: a view, if the tiles fit."""
        height, width, rows, columns, m = self
        if (rows * m, columns * m) != (height, width):
            images = F.pad(images, (0, 0, 0, columns * m - width, 0, rows * m - height))
        return images.reshape(len(images), rows, m, columns, m, -1)

    def products(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the products for that of the output ``(N, h, w, out)``."""
        m, num_out = self.m, gradient.shape[3]
        tiles = self.tiles(gradient).permute(2, 4, 0, 1, 3, 5).reshape(m * m, -1)
        return (transforms(m, gradient.dtype).outputs.T @ tiles).view((m + 2) ** 2, -1, num_out)

    def images(self, gradient: Tensor, num_images: int) -> Tensor:
        """Return the gradient of the images ``(N, h, w, in)`` for that of the transformed patches."""
        height, width, rows, columns, m = self
        n, num_in = m + 2, gradient.shape[2]
        patches = transforms(m, gradient.dtype).patches.T @ gradient.view(n * n, -1)
        patches = patches.view(n, n, num_images, rows, columns, num_in).permute(2, 3, 0, 4, 1, 5)
        # A patch covers its own tile and two rows and columns of the next ones, where overlapping patches are summed.
        padded = patches.new_zeros(num_images, rows + 1, m, columns + 1, m, num_in)
        padded[:, :rows, :, :columns] = patches[:, :, :m, :, :m]
        padded[:, 1:, :2, :columns] += patches[:, :, m:, :, :m]
        padded[:, :rows, :, 1:, :2] += patches[:, :, :m, :, m:]
        padded[:, 1:, :2, 1:, :2] += patches[:, :, m:, :, m:]
        return padded.view(num_images, (rows + 1) * m, (columns + 1) * m, num_in)[:, 1 : height + 1, 1 : width + 1]


class WinogradConvolution(torch.autograd.Function):
    """Convolution with 3x3 filters in float32, stride 1 and zero padding of 1, of float32 or bfloat16 on the CPU.

    Large batches are computed in parts: what is between the products of a whole one is too large for any cache, and is
    written and read from memory.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor) -> Tensor:
        """Map images ``(N, in, h, w)``, filters ``(out, in, 3, 3)`` to ``(N, out, h, w)``, channels last in memory."""
        num_images, num_in, height, width = images.shape
        tiling, num_out = Tiling.of(height, width), len(filters)
        _, _, rows, columns, m = tiling
        filters_t = transforms(m).filters @ filters.permute(2, 3, 1, 0).reshape(9, -1)
        filters_t = filters_t.view(-1, num_in, num_out).to(images.dtype)
        transformed = []
        output = images.new_empty(num_images, rows, m, columns, m, num_out)
        for part in tiling.parts(num_images, max(num_in, num_out)):
            transformed.append(tiling.patches(images[part].permute(0, 2, 3, 1)))
            output[part] = tiling.output(torch.bmm(transformed[-1], filters_t), len(output[part]))
        ctx.save_for_backward(filters_t, *transformed)
        ctx.tiling = tiling
        output = output.view(num_images, rows * m, columns * m, num_out)[:, :height, :width].contiguous()
        return output.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        """Apply the transposed transforms in reverse order; return the gradients of images (or None), filters."""
        filters_t, *transformed = ctx.saved_tensors
        tiling: Tiling = ctx.tiling
        gradient = gradients[0].permute(0, 2, 3, 1)
        of_filters = torch.zeros_like(filters_t, dtype=torch.float32)
        of_images = gradient.new_empty(*gradient.shape[:3], filters_t.shape[1]) if ctx.needs_input_grad[0] else None
        parts = tiling.parts(len(gradient), max(filters_t.shape[1:]))
        for part, patches in zip(parts, transformed, strict=True):
            products = tiling.products(gradient[part])
            of_filters += torch.bmm(patches.mT, products)
            if of_images is not None:
                of_images[part] = tiling.images(torch.bmm(products, filters_t.mT), len(gradient[part]))
        of_filters = transforms(tiling.m).filters.T @ of_filters.view(len(filters_t), -1)
        of_filters = of_filters.view(3, 3, *filters_t.shape[1:]).permute(3, 2, 0, 1)
        return None if of_images is None else of_images.permute(0, 3, 1, 2), of_filters


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution without bias and with padding 1, by torch's kernel or, in training, by Winograd's method.

    Winograd's is for training on a CPU, in float32, or in bfloat16 by autocast. Otherwise, and so in an exported
    network, torch's convolution is used, which is equal up to rounding. Name, shape and initial value of its weight are
    torch's.

    Attributes:
        kernels: The kernel of all images, or of images of each size, by ``shape_at`` of their height. Of a size that is
            not named, it is Winograd's. With less than ``MIN_CHANNELS``, and in bfloat16, it is torch's, unless named.
    """

    kernels: Literal["auto", "direct", "winograd"] | Mapping[str, Kernel] = "winograd"

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, kernel_size=3, padding=1, bias=False)

    def shape_at(self, height: int) -> str:
        """Return the name of this layer's shape for square images: 64x256@16 has 64 channels in, 256 out, 16 pixels."""
        return f"{self.in_channels}x{self.out_channels}@{height}"

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, num_in, height, width)`` to ``(N, num_out, height, width)``."""
        is_autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_autocast else images.dtype
        can = torch.is_grad_enabled() and not torch.compiler.is_compiling() and images.device.type == "cpu"
        can = can and dtype == (torch.bfloat16 if is_autocast else torch.float32) and self.weight.dtype == torch.float32
        if can and self._kernel(images.shape[2], dtype) == "winograd":
            with torch.autocast("cpu", enabled=False):
                return WinogradConvolution.apply(images.to(dtype), self.weight)  # type: ignore[no-any-return]
        return super().forward(images)

    def _kernel(self, height: int, dtype: torch.dtype) -> Kernel:
        is_usual = dtype == torch.float32 and min(self.in_channels, self.out_channels) >= MIN_CHANNELS
        usual: Kernel = "winograd" if is_usual else "direct"
        if isinstance(self.kernels, str):
            return "direct" if self.kernels == "direct" else usual
        return self.kernels.get(self.shape_at(height), usual)
