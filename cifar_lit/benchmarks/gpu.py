"""``scripts/bench.py --gpu``: stages in order of value, each in a process with a time limit; files and table."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cifar_lit.benchmarks.gpu_stages import COMPILED, EAGER, Row, Setting, fits, smoke, speed
from cifar_lit.benchmarks.gpu_table import describe, table
from cifar_lit.benchmarks.measures import Data
from cifar_lit.benchmarks.processes import make_folder
from cifar_lit.errors import UserError
from cifar_lit.files import write_atomic
from cifar_lit.machine import describe_machine

STARTUP = 15.0
"""Seconds that a stage must have left to be started."""
SLOWER = 10
"""By how much the limits of the stages are longer where they are tried on a CPU."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: its time limit in seconds, and its measurement."""

    limit: float
    rows: Callable[[Setting], Iterator[Row]]


def _speed(network: str, variants: Any) -> Callable[[Setting], Iterator[Row]]:
    return lambda setting: speed(setting, network, variants)


STAGES: dict[str, Stage] = {
    "smoke": Stage(120, smoke),
    "gpu94": Stage(150, lambda setting: fits(setting, "gpu94", 2 if setting.is_trial else 10)),
    "strong": Stage(180, lambda setting: fits(setting, "strong", 1)),
    "speed FastCNN": Stage(60, _speed("FastCNN", EAGER)),
    "speed StrongCNN": Stage(60, _speed("StrongCNN", EAGER)),
    "speed TutorialCNN": Stage(60, _speed("TutorialCNN", EAGER)),
    "compile FastCNN": Stage(100, _speed("FastCNN", COMPILED)),
    "compile StrongCNN": Stage(100, _speed("StrongCNN", COMPILED)),
    "compile TutorialCNN": Stage(100, _speed("TutorialCNN", COMPILED)),
}
"""In order of value: what the time does not suffice for is at the end."""


def report(data: Data, options: argparse.Namespace) -> int:
    """Run the stages, or in a process of its own one stage; print a line for each and the table; write the files.

    Returns:
        The exit code: 1 if a stage, or something in it, failed.
    """
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--gpu needs a CUDA device, and torch finds none: run it where there is one, or try its stages on a few "
            "images with --gpu --device cpu --num_images 1000"
        )
    if options.stage:
        write_rows(STAGES[options.stage].rows(Setting(data, device)), options.out)
        return 0
    for name, least in {"num_images": 24, "minutes": 0.01}.items():
        value = getattr(options, name)
        if not least <= value < math.inf:  # nan is neither
            raise UserError(f"--{name} is {value:g}: must be at least {least}")
    deadline = time.monotonic() + 60 * options.minutes
    make_folder(options.out)
    data.load()  # shows what is wrong with it, and decodes it before anything is timed
    for name in ("rows.jsonl", "log"):
        (options.out / f"bench_gpu.{name}").unlink(missing_ok=True)
    results = {"data": dataclasses.asdict(data), **describe_machine(device), "minutes": options.minutes, "stages": {}}
    for name, stage in STAGES.items():
        limit = stage.limit * (1 if device.type == "cuda" else SLOWER)
        results["stages"][name] = run_stage(name, limit, deadline, data, options)
        write_atomic(options.out / "bench_gpu.json", json.dumps(results, indent=2) + "\n")
        print(f"{name:<20}{describe(results['stages'][name])}", flush=True)
    text = table(results)
    write_atomic(options.out / "bench_gpu.md", text)
    print(f"\n{text}\nwritten to {options.out}: bench_gpu.json, bench_gpu.md, bench_gpu.log")
    stages = results["stages"].values()
    return int(any(stage["status"] == "failed" or any("error" in row for row in stage["rows"]) for stage in stages))


def write_rows(rows: Iterator[Row], folder: Path) -> None:
    """Append the rows to a file, each as soon as it is there: whatever ends the process leaves them."""
    with (folder / "bench_gpu.rows.jsonl").open("a", encoding="utf-8") as file:
        for row in rows:
            print(json.dumps(row), file=file, flush=True)


def run_stage(name: str, limit: float, deadline: float, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Run a stage in a process of its own, until its limit or the deadline.

    Returns:
        ``status`` (done, failed, stopped at its limit, or skipped), ``seconds``, ``rows``, and perhaps an ``error``.
    """
    left = deadline - time.monotonic()
    if left < STARTUP:
        why = f"{max(0.0, left):.0f} s left of {options.minutes:g} minutes"
        return {"status": "skipped", "seconds": 0.0, "rows": [], "error": why}
    rows, started = options.out / "bench_gpu.rows.jsonl", time.monotonic()
    num_before = len(_lines(rows))
    with (options.out / "bench_gpu.log").open("ab") as log:
        log.write(f"== {name}\n".encode())
        log.flush()
        process = subprocess.Popen(command_of(name, data, options), stdout=log, stderr=log, start_new_session=True)
        try:
            status = "failed" if process.wait(min(limit, left)) else "done"
        except subprocess.TimeoutExpired:
            status = f"stopped after {min(limit, left):.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile
                process.wait()
    found = list(_parsed(_lines(rows)[num_before:]))
    outcome = {"status": status, "seconds": time.monotonic() - started, "rows": found}
    if status == "failed":
        outcome["error"] = (_lines(options.out / "bench_gpu.log") or [""])[-1][:300]
    return outcome


def command_of(name: str, data: Data, options: argparse.Namespace) -> list[str]:
    """Return the command that runs one stage."""
    command = [sys.executable, "-m", "cifar_lit.benchmarks.report", "--gpu", "--stage", name]
    command += ["--device", options.device, "--out", str(options.out), "--num_images", str(data.num_images)]
    return [*command, "--source", data.source, "--root", data.root]


def _parsed(lines: list[str]) -> Iterator[Row]:
    """Parse the rows of a stage; a line that was being written when its process died is none."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip()]
