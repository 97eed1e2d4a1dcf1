"""The description of the machine, and the settings for speed."""

import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from cifar_lit.machine import (
    describe_machine,
    gemm_rate,
    has_fast_bfloat16,
    keep_freed_memory,
    num_processors,
    precision_to_score,
    return_freed_memory,
    set_up,
)
from tests.helpers.processes import environment


def test_the_machine_is_described() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"].startswith("cpu (")
    assert f"{torch.get_num_threads()} threads" in machine["device"]
    assert machine["versions"]["torch"] == version("torch")
    assert set(machine["versions"]) == {"python", "cifar_lit", "torch", "lightning", "torchmetrics"}


def test_what_the_machine_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr("cifar_lit.machine.version", missing)
    monkeypatch.setattr(Path, "read_text", forbidden)
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"].startswith("cpu (")
    assert set(machine["versions"]) == {"python", "cifar_lit"}


@pytest.mark.parametrize(("limit", "expected"), [("150000 100000", 1.5), ("max 100000", 3), ("damaged", 3), (None, 3)])
def test_the_processors_of_a_container_count(
    limit: str | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **_options: object) -> str:
        assert path.name == "cpu.max"
        if limit is None:
            raise FileNotFoundError(path)
        return limit

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    assert num_processors() == expected


def test_the_gemm_rate_is_a_number_of_gflops() -> None:
    assert 0 < gemm_rate(size=64, repeats=2) < 1e6


FAULTS = """
import resource, sys, torch
from cifar_lit.machine import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)  # 80 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(10)))  # where a block comes to lie varies at first
"""


def output_of(code: str, *args: str) -> str:
    """Run Python in a process of its own, and return what it printed."""
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment()).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_freed_memory_is_used_again_without_the_kernel() -> None:
    counts = {}
    for what in ("returned", "kept"):
        counts[what] = int(output_of(FAULTS, what))
    assert counts["kept"] < 100 < counts["returned"]


RETURNED = """
import resource, torch
from cifar_lit.machine import keep_freed_memory, return_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1])
assert keep_freed_memory()
blocks = [torch.ones(5_000_000) for _ in range(10)]  # 200 MB
last, blocks = blocks[-1], None  # which holds the end of the heap, so that it cannot shrink by itself
kept = resident()
assert return_freed_memory()
print((kept - resident()) * resource.getpagesize())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux has it")
def test_what_was_freed_can_be_returned_to_the_kernel() -> None:
    assert int(output_of(RETURNED)) > 150e6


def test_other_systems_keep_their_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert keep_freed_memory() is False
    assert return_freed_memory() is False


def test_slow_bfloat16_on_a_cpu_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="precision bf16-mixed: this CPU has no instructions for bfloat16"):
        set_up(torch.device("cpu"), "bf16-mixed")
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_up(torch.device("cpu"), "bf16-mixed")
        set_up(torch.device("cpu"), "32-true")


@pytest.mark.parametrize(
    ("trained_in", "on_cpu", "expected"),
    [
        ("32-true", True, ("32-true", "32-true")),
        ("64-true", True, ("64-true", "64-true")),
        ("bf16-mixed", True, ("bf16-mixed", "32-true")),
        ("bf16-true", True, ("bf16-true", "32-true")),
        ("bf16-mixed", False, ("bf16-mixed", "bf16-mixed")),
        ("16-mixed", True, ("32-true", "32-true")),
        ("16-true", True, ("32-true", "32-true")),
        ("16-mixed", False, ("16-mixed", "16-mixed")),
        (16, False, ("16", "16")),
        ("transformer-engine", False, ("32-true", "32-true")),
        ("auto", True, ("32-true", "32-true")),
        ("x" * 100_000, True, ("32-true", "32-true")),
        (None, True, ("32-true", "32-true")),
    ],
)
def test_a_training_is_scored_in_its_precision_unless_the_cpu_is_slow_with_it(
    trained_in: object, on_cpu: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for has_bfloat16 in (True, False):
        monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda has_bfloat16=has_bfloat16: has_bfloat16)
        found.append(precision_to_score(trained_in, on_cpu=on_cpu))
    assert tuple(found) == expected


@pytest.mark.parametrize(("capability", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_bfloat16_is_fast_with_its_own_instructions(
    capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    assert has_fast_bfloat16() is expected
