"""The machine of a run: its description, and settings for speed."""

import contextlib
import ctypes
import math
import os
import platform
import re
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import cifar_lit

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "32", "64", "bf16", "16")
"""Of the Trainer, with the names of older configurations."""


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next training step, and return whether that was possible.

    Otherwise glibc returns large blocks to the kernel and requests them again, zeroed page by page, in each step: half
    of the time of a step with batches of 500 images on a CPU. In exchange, the process does not shrink until
    ``return_freed_memory``.
    """
    mallopt = _glibc("mallopt")
    # malloc.h: M_ARENA_MAX (threads share the freed memory), M_MMAP_MAX, M_TRIM_THRESHOLD.
    return mallopt is not None and all([mallopt(-8, 1), mallopt(-4, 0), mallopt(-1, 2**31 - 1)])


def return_freed_memory() -> bool:
    """Let glibc return the memory that a training has freed to the kernel, and return whether that was possible."""
    malloc_trim = _glibc("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(0))


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def num_processors() -> float:
    """Return how many processors this process can use at a time, of a container where it is in one."""
    limits = [float(os.cpu_count() or 1)]
    with contextlib.suppress(AttributeError, OSError):  # of a system without it
        limits.append(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):  # without a limit it is "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        limits.append(int(quota) / int(period))
    return min(limits)


def free_memory(device: torch.device | str = "cpu") -> float:
    """Return how many bytes a process can still use, of a container where it is in one; infinite if nobody says it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [math.inf]
    with contextlib.suppress(OSError, AttributeError, ValueError):  # of a system without these names
        free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, StopIteration):  # what the kernel can drop counts as free
        free = [1024 * _read("/proc/meminfo", "MemAvailable")]
    with contextlib.suppress(OSError, StopIteration, ValueError):  # without a limit it is "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
        free.append(limit - _read("/sys/fs/cgroup/memory.stat", "anon"))
    return max(0, min(free))


def _read(file: str, name: str) -> int:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def set_up(device: torch.device, precision: str, *, benchmark: bool | None = None) -> None:
    """Prepare the process for training on a device with the Trainer's precision and ``benchmark``."""
    if device.type == "cuda":
        # TF32: a fifth of the time, and its 10 bits of mantissa suffice for these networks.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        # After the Trainer's own setting. The fastest kernels are not always deterministic.
        if benchmark is None and not torch.are_deterministic_algorithms_enabled():
            torch.backends.cudnn.benchmark = True
    elif device.type == "cpu":
        keep_freed_memory()
        if "bf16" in precision and not has_fast_bfloat16():
            problem = "this CPU has no instructions for bfloat16, which is slower than 32-true"
            warnings.warn(f"precision {precision}: {problem}", stacklevel=2)


def precision_to_score(trained_in: object, *, on_cpu: bool) -> str:
    """Return the Trainer's precision to score a training in: its own.

    It is ``32-true`` where that is none of ``PRECISIONS``, or has 16 bits that the CPU is slow with.
    """
    precision = str(trained_in)
    is_slow = "16" in precision and not ("bf16" in precision and has_fast_bfloat16())
    return "32-true" if precision not in PRECISIONS or (on_cpu and is_slow) else precision


def computes_on_cpu(accelerator: object) -> bool:
    """Return whether a Trainer with this ``accelerator`` computes on the CPU."""
    return accelerator == "cpu" or not torch.accelerator.is_available()


def has_fast_bfloat16() -> bool:
    """Return whether the CPU has AVX512_BF16, AMX or, on ARM, BF16 instructions."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.9
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "arm_bf16", "bf16"))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return ``device``, a description of the device and processor, and ``versions`` of the packages.

    What the machine does not say is left out: this is asked for at the end of a training.
    """
    name = f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "cifar_lit": cifar_lit.__version__}
    for package in ("torch", "lightning", "torchmetrics"):
        with contextlib.suppress(PackageNotFoundError):  # of a program that was packed without their descriptions
            versions[package] = version(package)
    return {"device": f"{device.type} ({name})", "versions": versions}


def gemm_rate(size: int = 2048, repeats: int = 5) -> float:
    """Return the GFLOP/s of ``torch.mm`` with two float32 matrices of this side on the CPU: the best of some calls."""
    first, second = torch.rand(2, size, size)
    seconds = []
    for _ in range(1 + repeats):  # the first one prepares
        started = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:]) / 1e9


def cpu_name() -> str:
    """Return the name of the processor's model."""
    found = None
    with contextlib.suppress(OSError):  # of a system without it
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else platform.processor() or platform.machine()
