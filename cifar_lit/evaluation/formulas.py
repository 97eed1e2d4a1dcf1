"""The output-size formulas of convolution and pooling, with the numbers of a layer filled in."""

import math

from torch import nn

Shape = tuple[int, ...]
Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d
"""Layers with a kernel that slides over height and width."""


def size_rows(module: nn.Module, shape_in: Shape) -> list[tuple[str, str]]:
    """Return the output-size formula of a layer with a window, filled in for height and width."""
    if not isinstance(module, Window | nn.ConvTranspose2d) or len(shape_in) != 3:
        return []
    formula = _transposed if isinstance(module, nn.ConvTranspose2d) else _formula
    height, width = (formula(module, axis, shape_in[1 + axis]) for axis in (0, 1))
    return [("height, width", height)] if height == width else [("height", height), ("width", width)]


def _setting(module: nn.Module, name: str, axis: int, default: int) -> int:
    value = getattr(module, name, default)
    if value is None:  # the stride of LPPool2d
        return _setting(module, "kernel_size", axis, default)
    return int(value[axis] if isinstance(value, tuple) else value)


def _transposed(module: nn.Module, axis: int, size: int) -> str:
    """Return the formula of ``torch.nn.ConvTranspose2d`` with numbers and result."""
    names = ("stride", "padding", "dilation", "kernel_size", "output_padding")
    stride, padding, dilation, kernel, more = (_setting(module, name, axis, 1) for name in names)
    result = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
    return f"({size} - 1)*{stride} - 2*{padding} + {dilation}*({kernel} - 1) + {more} + 1 = {result}"


def _padding(module: nn.Module, axis: int) -> int:
    """Return the padding of both sides together."""
    padding = getattr(module, "padding", 0)
    if padding == "same":
        return _setting(module, "dilation", axis, 1) * (_setting(module, "kernel_size", axis, 1) - 1)
    return 0 if padding == "valid" else 2 * _setting(module, "padding", axis, 0)


def _formula(module: nn.Module, axis: int, size: int) -> str:
    """Return ``(size + 2*padding - dilation*(kernel - 1) - 1) / stride + 1``, rounded down, with numbers and result."""
    kernel, dilation = _setting(module, "kernel_size", axis, 1), _setting(module, "dilation", axis, 1)
    stride, padding = _setting(module, "stride", axis, 1), _padding(module, axis)
    both = f"{padding}" if padding % 2 else f"2*{padding // 2}"
    rounding = "ceil" if getattr(module, "ceil_mode", False) else "floor"
    result = output_size(size, kernel, stride, padding, dilation, rounding == "ceil")
    is_skipped = rounding == "ceil" and result == output_size(size + stride - 1, kernel, stride, padding, dilation) - 1
    skipped = " - 1 (a window in the padding)" if is_skipped else ""
    return f"{rounding}(({size} + {both} - {dilation}*({kernel} - 1) - 1) / {stride} + 1){skipped} = {result}"


def output_size(
    size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """Return the height or width after a convolution or pooling; ``padding`` is that of both sides together.

    The formula is that of ``torch.nn.Conv2d`` and ``torch.nn.MaxPool2d``. In ``ceil_mode`` a last window that would
    begin in the padding of the far side is left out, as there.
    """
    steps = (size + padding - dilation * (kernel - 1) - 1) / stride
    result = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
    return result - 1 if ceil_mode and (result - 1) * stride >= size + padding // 2 else result
