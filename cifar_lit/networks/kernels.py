"""Kernel of the 3x3 convolutions and precision of the training, chosen by measuring: ``auto``."""

import copy
import re
import zlib
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.errors import UserError, require
from cifar_lit.machine import has_fast_bfloat16
from cifar_lit.networks.base import evaluation_mode
from cifar_lit.networks.measuring import measure_share, measured_shares
from cifar_lit.networks.winograd import MIN_CHANNELS, Conv3x3, Kernel, Kernels, WinogradConvolution

PAYS = {"winograd": 0.9, "bf16-mixed": 0.8}
"""Share of the time of direct, and of 32-true, below which they are chosen: less gain is noise, and they round more."""
PRODUCTS = {torch.float32: 1e9, torch.bfloat16: 3e9}
"""Of torch's convolution, forward, for the images that are measured; the whole batch would take seconds. In bfloat16
products are faster, and fewer images would have too much of what is done once for a batch: transforming the filters."""
FLOAT32, BFLOAT16 = ("32-true", "32", 32, None), ("bf16-mixed", "bf16")
"""What the Trainer calls them."""
NUM_PIXELS = 32 * 32 * 32
"""Of the images in a step that is measured."""
USUAL: dict[torch.dtype, Kernel] = {torch.float32: "winograd", torch.bfloat16: "direct"}
"""The kernel of all convolutions where none was measured."""
Precision = Literal["32-true", "bf16-mixed"]
Choice = tuple[Kernels, bool]
"""Kernels, and whether they are as measured, where they had to be."""


def check_kernels(kernels: Any) -> None:
    """Raise a ``UserError`` for what are no ``Kernels``."""
    if isinstance(kernels, dict):
        known = all(re.fullmatch(r"\d+x\d+@\d+", str(key)) for key in kernels)
        known &= all(kernel in get_args(Kernel) for kernel in kernels.values())
    else:
        known = kernels in ("auto", *get_args(Kernel))
    expected = "auto, direct, winograd, or a mapping from shapes to the last two, as {64x256@16: winograd}"
    require("kernels", f"{kernels!s:.100}", known, expected)


def set_kernels(net: nn.Module, kernels: Kernels) -> None:
    """Let the convolutions of a network take these kernels."""
    for layer in net.modules():
        if isinstance(layer, Conv3x3):
            layer.kernels = kernels


def check_shapes(net: nn.Module, kernels: Kernels, sizes: Iterable[int]) -> None:
    """Refuse kernels for a shape that no convolution has on images of these sizes."""
    if not isinstance(kernels, dict) or not kernels:
        return
    known = {name for size in set(sizes) for name in _shapes(net, size, least=1)}
    for shape in kernels:
        if shape not in known:
            which = f"{type(net).__name__} has {', '.join(sorted(known)) or 'none with two kernels'}"
            raise UserError(f"`kernels` has {shape}, and the network no such convolution ({which}): give auto")


def dtype_of(precision: Any) -> torch.dtype | None:
    """Return the type of convolutions on this CPU by the Trainer's precision, if there are two kernels for it."""
    if precision in FLOAT32:
        return torch.float32
    return torch.bfloat16 if precision in BFLOAT16 and has_fast_bfloat16() else None


def choose_kernels(net: nn.Module, sizes: Iterable[int], batch_size: int, dtype: torch.dtype = torch.float32) -> Choice:
    """Return the faster kernel of each convolution, by its shape, for training on the CPU, and whether it is measured.

    If other work on the machine disturbs the measuring it is the usual one for all.

    Args:
        net: The network, which stays as it is; so do the global random numbers.
        sizes: Height and width of the images.
        batch_size: Images of a step, of which a part is measured.
        dtype: That of the convolutions: float32, or bfloat16 by autocast.
    """
    shapes = {name: shape for size in sorted(set(sizes)) for name, shape in _shapes(net, size).items()}
    chosen: dict[str, Kernel] = {}
    with measured_shares() as shares:
        for name, (num_in, num_out, height) in shapes.items():
            num_images = min(batch_size, part_size(dtype, num_in, num_out, height))
            what = f"winograd/direct: {name}, {num_images} images, {torch.get_num_threads()} threads"
            what += ", bfloat16" * (dtype == torch.bfloat16)
            if what not in shares:
                share = time_winograd(dtype, num_images, num_in, num_out, height)
                if share is None:
                    return USUAL[dtype], False
                shares[what] = share
            chosen[name] = "winograd" if shares[what] < PAYS["winograd"] else "direct"
    return chosen, True


def choose_precision(
    net: nn.Module, size: int, batch_size: int, kernels: tuple[Kernels, Kernels], given: Kernels = "auto"
) -> Precision | None:
    """Return the faster precision for a training of a network on the CPU, with images of a size; it stays as it is.

    If other work on the machine disturbs the measuring it is None. A step that fails is one in float32.

    Args:
        net: The network.
        size: Height and width of the images.
        batch_size: Images of a step, of which a part is measured.
        kernels: Those in bfloat16, and those in float32.
        given: The option that they come from. What was measured with one is not that of another.
    """
    if not has_fast_bfloat16():
        return "32-true"
    num_images = max(2, min(batch_size, NUM_PIXELS // size**2))
    shapes = [(name, *parameter.shape) for name, parameter in net.named_parameters()]
    which = f"{type(net).__name__} {zlib.crc32(str(shapes).encode()):08x}"  # equal numbers of parameters may cost more
    what = f"bfloat16/float32: {which}, {num_images} images of {size}, {torch.get_num_threads()} threads"
    what += "" if given == "auto" else f", kernels {given}"
    with measured_shares() as shares:
        if what not in shares:
            try:
                share = time_bfloat16(net, num_images, size, kernels)
            except Exception:  # of a network of the user's, which autocast does not suit
                return "32-true"
            if share is None:
                return None
            shares[what] = share
        return "bf16-mixed" if shares[what] < PAYS["bf16-mixed"] else "32-true"


def part_size(dtype: torch.dtype, num_in: int, num_out: int, height: int) -> int:
    """Return how many images are measured: those that take ``PRODUCTS``."""
    return max(1, round(PRODUCTS[dtype] / (9 * num_in * num_out * height**2)))


def time_winograd(dtype: torch.dtype, num_images: int, num_in: int, num_out: int, height: int) -> float | None:
    """Return the time of Winograd's method as a share of that of torch's convolution; None if it was disturbed."""
    generator = torch.Generator().manual_seed(0)  # not the global one
    shapes = (num_images, num_in, height, height), (num_out, num_in, 3, 3), (num_images, num_out, height, height)
    images, filters, towards = (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last) for shape in shapes
    )
    images, filters, towards = images.to(dtype).requires_grad_(), filters.requires_grad_(), towards.to(dtype)
    parts = images, filters
    return measure_share(
        lambda: torch.autograd.grad(WinogradConvolution.apply(*parts), parts, towards),
        lambda: torch.autograd.grad(F.conv2d(images, filters.to(dtype), padding=1), parts, towards),
    )


def time_bfloat16(net: nn.Module, num_images: int, size: int, kernels: tuple[Kernels, Kernels]) -> float | None:
    """Return the time of forward and backward in bfloat16 as a share of that in float32; None if it was disturbed."""
    nets = [copy.deepcopy(net).train() for _ in kernels]  # which have gradients and statistics of their own
    for one, of_one in zip(nets, kernels, strict=True):
        set_kernels(one, of_one)
    images = torch.rand(num_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)

    def step(net: nn.Module, is_autocast: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            logits = net(images)
        torch.autograd.backward(logits.float().square().mean())

    with torch.random.fork_rng(devices=[]):  # dropout
        return measure_share(lambda: step(nets[0], True), lambda: step(nets[1], False))


def _shapes(net: nn.Module, size: int, least: int = MIN_CHANNELS) -> dict[str, tuple[int, int, int]]:
    """Return the channels and the height of the convolutions that images of a size go through, by their names.

    Those of less than ``least`` channels are left out: with few, Winograd's method never pays.
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Conv3x3)
        height = args[0].shape[2]
        shapes[layer.shape_at(height)] = (layer.in_channels, layer.out_channels, height)

    layers = [layer for layer in net.modules() if isinstance(layer, Conv3x3)]
    layers = [layer for layer in layers if min(layer.in_channels, layer.out_channels) >= least]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        if layers:
            with torch.no_grad(), evaluation_mode(net), torch.random.fork_rng(devices=[]):
                net(torch.zeros(2, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
