"""Kernel of the 3x3 convolutions and precision of the training, chosen by measuring: ``auto``.

What was measured is kept in the user's cache, so that all runs of a machine choose the same. The file may be deleted.
"""

import contextlib
import copy
import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.errors import require
from cifar_lit.files import write_atomic
from cifar_lit.machine import cpu_name, has_fast_bfloat16
from cifar_lit.networks.base import evaluation_mode
from cifar_lit.networks.winograd import MIN_CHANNELS, Conv3x3, Kernel, Kernels, WinogradConvolution

MEASURED = "~/.cache/cifar_lit/measured.json"
PAYS = {"winograd": 0.9, "bf16-mixed": 0.8}
"""Share of the time of direct, and of 32-true, below which they are chosen: less gain is noise, and they round more."""
CLEAR = (0.7, 1.2)
"""Shares outside of which two rounds are enough."""
ROUNDS = 4
CALM = 0.8
"""Share of its processors' time that a process has while it measures, or other work disturbs it."""
PRODUCTS = {torch.float32: 1e9, torch.bfloat16: 3e9}
"""Of torch's convolution, forward, for the images that are measured; the whole batch would take seconds. In bfloat16
products are faster, and fewer images would have too much of what is done once for a batch: transforming the filters."""
FLOAT32, BFLOAT16 = ("32-true", "32", 32, None), ("bf16-mixed", "bf16")
"""What the Trainer calls them."""
NUM_PIXELS = 32 * 32 * 32
"""Of the images in a step that is measured."""
Precision = Literal["32-true", "bf16-mixed"]


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


def dtype_of(precision: Any) -> torch.dtype | None:
    """Return the type of convolutions on this CPU by the Trainer's precision, if there are two kernels for it."""
    if precision in FLOAT32:
        return torch.float32
    return torch.bfloat16 if precision in BFLOAT16 and has_fast_bfloat16() else None


def choose_kernels(
    net: nn.Module, sizes: Iterable[int], batch_size: int, dtype: torch.dtype = torch.float32
) -> Kernels:
    """Return the faster kernel of each convolution, by its shape, for a training on the CPU.

    If other work on the machine disturbs the measuring it is winograd for all, in bfloat16 direct.

    Args:
        net: The network, which stays as it is; so do the global random numbers.
        sizes: Height and width of the images.
        batch_size: Images of a step, of which a part is measured.
        dtype: That of the convolutions: float32, or bfloat16 by autocast.
    """
    shapes = {name: shape for size in sorted(set(sizes)) for name, shape in _shapes(net, size).items()}
    chosen: dict[str, Kernel] = {}
    with _measured() as shares:
        for name, (num_in, num_out, height) in shapes.items():
            num_images = min(batch_size, part_size(dtype, num_in, num_out, height))
            what = f"winograd/direct: {name}, {num_images} images, {torch.get_num_threads()} threads"
            what += ", bfloat16" * (dtype == torch.bfloat16)
            if what not in shares:
                share = time_winograd(dtype, num_images, num_in, num_out, height)
                if share is None:
                    return "winograd" if dtype == torch.float32 else "direct"
                shares[what] = share
            chosen[name] = "winograd" if shares[what] < PAYS["winograd"] else "direct"
    return chosen


def choose_precision(net: nn.Module, size: int, batch_size: int, kernels: tuple[Kernels, Kernels]) -> Precision | None:
    """Return the faster precision for a training of a network on the CPU, with images of a size; it stays as it is.

    If other work on the machine disturbs the measuring it is None.

    Args:
        net: The network.
        size: Height and width of the images.
        batch_size: Images of a step, of which a part is measured.
        kernels: Those in bfloat16, and those in float32.
    """
    if not has_fast_bfloat16():
        return "32-true"
    num_images = max(2, min(batch_size, NUM_PIXELS // size**2))
    shapes = [(name, *parameter.shape) for name, parameter in net.named_parameters()]
    which = f"{type(net).__name__} {zlib.crc32(str(shapes).encode()):08x}"  # equal numbers of parameters may cost more
    what = f"bfloat16/float32: {which}, {num_images} images of {size}"
    with _measured() as shares:
        if what not in shares:
            share = time_bfloat16(net, num_images, size, kernels)
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
    return _share(
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
        return _share(lambda: step(nets[0], True), lambda: step(nets[1], False))


def _share(one: Callable[[], object], other: Callable[[], object]) -> float | None:
    """Return the time of one function as a share of that of another, in turn, the first calls left out.

    The time is the shortest of a few: other work on the machine can only add to it. With too much of it, it is None.
    """
    shortest, share = [math.inf, math.inf], 1.0
    began, used = time.perf_counter(), time.process_time()
    with torch.enable_grad():
        for number in range(1 + ROUNDS):
            for i, run in enumerate((one, other)):
                started = time.perf_counter()
                run()
                if number:
                    shortest[i] = min(shortest[i], time.perf_counter() - started)
            share = shortest[0] / shortest[1] if number else share
            if number >= 2 and not CLEAR[0] < share < CLEAR[1]:
                break
    used = (time.process_time() - used) / (time.perf_counter() - began) / torch.get_num_threads()
    return share if used > CALM else None


def _shapes(net: nn.Module, size: int) -> dict[str, tuple[int, int, int]]:
    """Return the channels and the height of the convolutions that images of a size go through, by their names.

    Those of few channels are left out: there Winograd's method never pays.
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Conv3x3)
        height = args[0].shape[2]
        shapes[layer.shape_at(height)] = (layer.in_channels, layer.out_channels, height)

    layers = [layer for layer in net.modules() if isinstance(layer, Conv3x3)]
    layers = [layer for layer in layers if min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        if layers:
            with torch.no_grad(), evaluation_mode(net), torch.random.fork_rng(devices=[]):
                net(torch.zeros(2, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


@contextlib.contextmanager
def _measured() -> Iterator[dict[str, float]]:
    """Give the shares that were measured on this machine before; what is added is kept, if it can be.

    Other processes wait meanwhile: they find it then, and do not disturb it.
    """
    path, content = Path(MEASURED), {}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, no place, no locks: it is measured again
            path = path.expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock", timeout=30))
            content = _read(path)
        shares = content.setdefault(_machine(), {})
        before = len(shares)
        yield shares
        if len(shares) > before and path.is_absolute():
            with contextlib.suppress(OSError):
                write_atomic(path, json.dumps(content, indent=1) + "\n")


def _machine() -> str:
    level = os.environ.get("ONEDNN_MAX_CPU_ISA", torch.backends.cpu.get_cpu_capability())
    return f"{cpu_name()}, {level}, torch {torch.__version__}"


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Return what is sound of a file of measurements; nothing if there is none."""
    try:
        content = json.loads(path.read_bytes())
        return {
            machine: {what: share for what, share in shares.items() if isinstance(share, float) and 0 < share < 1e6}
            for machine, shares in content.items()
        }
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
