"""Shares of time, measured on this machine and kept in the user's cache, so that all of its runs choose the same.

The file may be deleted.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock

from cifar_lit.files import write_atomic
from cifar_lit.machine import cpu_name, num_processors

MEASURED = "~/.cache/cifar_lit/measured.json"
CLEAR = (0.7, 1.2)
"""Shares outside of which two rounds are enough."""
ROUNDS = 4
CALM = 0.8
"""Share of its processors' time that a process has while it measures, or other work disturbs it."""


def measure_share(one: Callable[[], object], other: Callable[[], object]) -> float | None:
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
    used = (time.process_time() - used) / (time.perf_counter() - began)
    return share if used / min(torch.get_num_threads(), num_processors()) > CALM else None


@contextlib.contextmanager
def measured_shares() -> Iterator[dict[str, float]]:
    """Give the shares that were measured on this machine before; what is added is kept, if it can be.

    Other processes wait meanwhile: they find it then, and do not disturb it.
    """
    path, content = Path(MEASURED), {}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, no place: it is measured again
            path = path.expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError, RuntimeError):  # of another user, no locks, or held for too long
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
