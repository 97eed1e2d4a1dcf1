"""The machine that a run is on: what it is, and what is asked of it for the sake of speed."""

import ctypes
import os
import platform
import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cifar_lit


def keep_freed_memory() -> bool:
    """Ask the C library to keep the memory that is freed, for the next step of a training needs the same again.

    Otherwise glibc gives large blocks back to the kernel and gets them again, page by page and filled with zeros, in
    each step: with batches of 500 pictures that was half of the time of a step on a CPU. The process then stays as
    large as it once was.

    Returns:
        Whether that was possible: with glibc, which is Linux's usual C library.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, which does without
        return False
    # malloc.h: M_ARENA_MAX, so that the threads share what is kept; M_MMAP_MAX; M_TRIM_THRESHOLD.
    return all([mallopt(-8, 1), mallopt(-4, 0), mallopt(-1, 2**31 - 1)])


def set_up(device: torch.device, precision: str) -> None:
    """Prepare the process for a training.

    Args:
        device: Where it will be.
        precision: The Trainer's precision.
    """
    if device.type == "cuda":
        # TF32 for what is float32: a fifth of the time, and 10 bits of mantissa are plenty for these networks.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        # The Trainer has set its --trainer.benchmark already; it ends what --trainer.deterministic promises.
        if not torch.are_deterministic_algorithms_enabled():
            torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        keep_freed_memory()
        if "bf16" in precision and not has_fast_bfloat16():
            warnings.warn(
                f"--trainer.precision {precision}: this CPU has no instructions for bfloat16, which makes it slower "
                "than 32-true",
                stacklevel=2,
            )


def has_fast_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 at least as fast as float32.

    Returns:
        Whether it has AVX512_BF16, AMX or, on ARM, BF16 instructions.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch we take
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "arm_bf16", "bf16"))


# What PyTorch, the kernels of oneDNN and C++ say of a CPU's memory that is full, in no error of its own.
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|^could not (create a (primitive|memory)( object)?|execute a primitive)$|^std::bad_alloc$"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory is full; only on a GPU has PyTorch one of its own for this.

    Args:
        error: The error.

    Returns:
        Whether it does.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Say what it ran on.

    Args:
        device: Where the module was trained.

    Returns:
        ``device`` and ``versions``.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "cifar_lit": cifar_lit.__version__}
    versions |= {package: version(package) for package in ("torch", "lightning", "torchmetrics")}
    return {"device": f"{device.type} ({name})", "versions": versions}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
