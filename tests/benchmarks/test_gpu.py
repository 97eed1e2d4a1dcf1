"""The benchmark of a GPU: its stages tried on the CPU, its limits and its files."""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_lit.benchmarks import gpu, gpu_stages
from cifar_lit.benchmarks.gpu import STAGES, Stage
from cifar_lit.benchmarks.gpu_stages import COMPILED, EAGER, Setting, fits, run_as, tried
from cifar_lit.benchmarks.gpu_table import describe, table
from cifar_lit.benchmarks.measures import Data
from cifar_lit.benchmarks.report import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.recipes import RECIPES
from tests.helpers.processes import wait_for

TRIAL = ["--gpu", "--device", "cpu", "--num_images", "24", "--source", "images"]
SPEED = {"network": "FastCNN", "batch_size": 2000, "layout": "channels_last", "mode": "eager"}
FIT = {"recipe": "gpu94", "accuracy": 0.93, "tta_accuracy": 0.94, "multiplications": 176 * 10**12}
FIT |= {"seconds": 8.0, "images_per_second": 130_000.0}
RESULTS: dict[str, Any] = {
    "device": "cuda (a card)",
    "versions": {"torch": "2.14.0"},
    "data": {"source": "cifar10", "root": "data", "num_images": 0},
    "stages": {
        "smoke": {"status": "done", "seconds": 30.0, "rows": [{"recipe": "fast", "seconds": 2.0}]},
        "speed FastCNN": {
            "status": "done",
            "seconds": 20.0,
            "rows": [
                SPEED | {"precision": "float32", "images_per_second": 50_000.0},
                SPEED | {"precision": "bf16-mixed", "images_per_second": 250_000.0},
                SPEED | {"precision": "bf16-mixed", "mode": "CUDA graphs", "error": "RuntimeError: no"},
            ],
        },
        "gpu94": {
            "status": "stopped after 150 s",
            "seconds": 150.0,
            "rows": [FIT | {"train_seconds": 9.0}, FIT | {"train_seconds": 3.0, "tta_accuracy": 0.942}],
        },
        "strong": {"status": "skipped", "seconds": 0.0, "rows": [], "error": "3 s left of 9 minutes"},
    },
}


def test_the_table_has_speeds_trainings_and_what_is_missing() -> None:
    lines = table(RESULTS).splitlines()
    assert lines[0] == "cuda (a card); torch 2.14.0; data: cifar10 data"
    assert "| FastCNN | 2000 | float32 | channels_last | eager | 50,000 | 1.00 |" in lines
    assert "| FastCNN | 2000 | bf16-mixed | channels_last | eager | 250,000 | 5.00 |" in lines
    # The first training of the process is apart: it starts the device.
    assert "| gpu94 | 2 | 0.9300 ± 0.0000 | 0.9410 ± 0.0127 | 3.00 | 9.00 | 8.00 | 130,000 | 1.76e+14 |" in lines
    assert "| smoke | done, 1 recipes ran, 30 s |" in lines
    assert "| strong | skipped (3 s left of 9 minutes), 0 s |" in lines
    speed = describe(RESULTS["stages"]["speed FastCNN"])
    assert speed.startswith("done, 250,000 images/s with bf16-mixed, channels_last, eager, failed: ")
    assert "CUDA graphs: RuntimeError: no" in speed


def test_without_float32_there_is_no_ratio() -> None:
    stage = RESULTS["stages"]["speed FastCNN"]
    others = {"speed FastCNN": stage | {"rows": stage["rows"][1:]}}
    line = "| FastCNN | 2000 | bf16-mixed | channels_last | eager | 250,000 |  |"
    assert line in table(RESULTS | {"stages": others}).splitlines()


def test_the_beginning_of_a_row_does_not_end_the_report(tmp_path: Path) -> None:
    (tmp_path / "bench_gpu.rows.jsonl").write_text('{"recipe": "a"}\n{"rec')
    assert list(gpu._parsed(gpu._lines(tmp_path / "bench_gpu.rows.jsonl"))) == [{"recipe": "a"}]


def test_other_images_than_the_official_ones_claim_no_94_percent() -> None:
    assert "whose goals are 0.94 and 0.96" in table(RESULTS)
    other = table(RESULTS | {"data": {"source": "images", "root": "a.tar.gz", "num_images": 0}})
    assert "these are no 94 and 96 %" in other
    assert "goals" not in other


def test_without_a_gpu_it_says_in_one_line_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--gpu"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --gpu needs a CUDA device")
    assert "--gpu --device cpu --num_images 1000" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--minutes", "0"], "--minutes is 0: must be at least 0.01"),
        (["--minutes", "nan"], "--minutes is nan: must be at least 0.01"),
        (["--num_images", "-1"], "--num_images is -1: must be at least 24"),
        (["--only", "bc"], "--only is bc, and does nothing beside --gpu"),
        (["--out", "/proc"], "--out is /proc: cannot be written"),
    ],
)
def test_a_bad_option_is_one_line(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRIAL, *args]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bench_gpu.rows.jsonl").read_text().splitlines()]


def try_stage(name: str, root: Path, out: Path) -> list[dict[str, Any]]:
    out.mkdir()
    assert main([*TRIAL, "--root", str(root), "--out", str(out), "--stage", name]) == 0
    rows = rows_of(out)
    assert not [row for row in rows if "error" in row]
    return rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "speed TutorialCNN")) for name in STAGES]
)
def test_each_stage_runs_on_a_cpu(name: str, tiny_root: Path, tmp_path: Path) -> None:
    rows = try_stage(name, tiny_root, tmp_path / "out")
    if name == "smoke":
        assert [row["recipe"] for row in rows] == list(RECIPES)
    elif name in ("gpu94", "strong"):
        assert [row["seed"] for row in rows] == list(range(2 if name == "gpu94" else 1))
        assert all(0 <= row["tta_accuracy"] <= 1 and row["train_seconds"] > 0 for row in rows)
        assert all(row["num_test"] == 24 and row["epochs"] == 1 and row["multiplications"] for row in rows)
    else:
        kinds = EAGER if name.startswith("speed") else COMPILED
        assert [(row["precision"], row["layout"], row["mode"]) for row in rows] == list(kinds)
        assert all(row["images_per_second"] > 0 and row["batch_size"] == 6 for row in rows)


def test_each_seed_is_a_row(tiny_root: Path) -> None:
    setting = Setting(Data("images", str(tiny_root), 24), torch.device("cpu"))
    rows = list(fits(setting, "tutorial", 2))
    assert [(row["recipe"], row["seed"], row["epochs"], row["num_test"]) for row in rows] == [
        ("tutorial", 0, 1, 24),
        ("tutorial", 1, 1, 24),
    ]
    assert all(0 < row["train_seconds"] < row["seconds"] and row["tta_accuracy"] is None for row in rows)
    assert not Path("lightning_logs").exists()  # nothing is saved


@pytest.mark.slow
def test_a_recipe_that_fails_does_not_hide_the_others(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer: {max_epochs: 1}\nmodel: {lr: -1}\ndata: {}\n")
    monkeypatch.setitem(RECIPES, "broken", broken)
    monkeypatch.setattr(gpu_stages, "RECIPES", {name: RECIPES[name] for name in ("broken", "quick")})
    (tmp_path / "out").mkdir()
    assert main([*TRIAL, "--root", str(tiny_root), "--out", str(tmp_path / "out"), "--stage", "smoke"]) == 0
    broken_row, quick = rows_of(tmp_path / "out")
    assert broken_row["error"].startswith("UserError: exit code 2 of fit")
    assert quick["recipe"] == "quick"
    assert quick["seconds"] > 0


def test_an_error_of_any_kind_is_a_row() -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("\nCUDA error: an illegal memory access\nmore")

    assert tried({"mode": "compile"}, fail) == {
        "mode": "compile",
        "error": "RuntimeError: CUDA error: an illegal memory access",
    }


def test_on_a_gpu_graphs_and_compiled_code_are_made_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda net, inputs: found.append((net, *inputs)))
    monkeypatch.setattr(nn.Module, "compile", lambda net, **options: found.append((net, options)))
    model = ImageClassifier(classes=["a", "b"], net=TutorialCNN)
    for mode in ("eager", "CUDA graphs", "compile", "compile, reduce-overhead"):
        run_as(model, mode, 4, is_trial=False)
    (net, images), *compiled = found
    assert net is model.net
    assert isinstance(images, Tensor)
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert compiled == [(model.net, {}), (model.net, {"mode": "reduce-overhead"})]


def test_on_a_gpu_a_fit_has_the_settings_of_the_recipe() -> None:
    options = Setting(Data("cifar10", "data", 1000), torch.device("cuda")).options("gpu94")
    assert options[:6] == ["--recipe", "gpu94", "--data.source", "cifar10", "--data.root", "data"]
    assert "--trainer.accelerator gpu --trainer.devices 1" in " ".join(options)
    assert not [name for name in ("max_epochs", "precision", "batch_size", "limit") if name in " ".join(options)]


def script(code: str) -> Callable[[str, Path], list[str]]:
    return lambda name, rows: [sys.executable, "-c", f"name, rows = {name!r}, {str(rows)!r}\n{code}"]


ADD = "open(rows, 'a').write('{\"recipe\": \"' + name + '\", \"seconds\": 1.0}\\n')\n"
SCRIPTS = {
    "first": script(ADD),
    "second": script(f"import sys\n{ADD}sys.exit('the reason')"),
    "third": script(
        f"{ADD}import json, subprocess, time\n"
        "assert list(json.load(open(rows.replace('rows.jsonl', 'json')))['stages']) == ['first', 'second']\n"
        "process = subprocess.Popen(['sleep', '60'])\n"
        "open(rows.replace('rows.jsonl', 'pid'), 'w').write(str(process.pid))\n"
        "time.sleep(60)"
    ),
    "fourth": script(ADD),
}


def test_each_stage_has_a_limit_and_the_file_has_what_was_done_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command_of(name: str, data: Data, options: argparse.Namespace) -> list[str]:
        return SCRIPTS[name](name, options.out / "bench_gpu.rows.jsonl")

    pid, wait = tmp_path / "bench_gpu.pid", subprocess.Popen.wait

    def wait_or_pass(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        """Let three seconds be over as soon as the third stage has written its files, and not before."""
        if timeout != 3:
            return wait(process, timeout)
        wait_for(lambda: pid.exists() and pid.read_text())
        raise subprocess.TimeoutExpired("third", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_or_pass)
    limits = {"first": 60.0, "second": 60.0, "third": 3.0 / gpu.SLOWER, "fourth": 60.0}
    monkeypatch.setattr(gpu, "STAGES", {name: Stage(limit, STAGES["smoke"].rows) for name, limit in limits.items()})
    monkeypatch.setattr(gpu, "command_of", command_of)
    monkeypatch.setattr(Data, "load", lambda _: None)
    assert main([*TRIAL, "--out", str(tmp_path)]) == 1  # the second one failed
    stages = json.loads((tmp_path / "bench_gpu.json").read_text())["stages"]
    assert [stage["status"] for stage in stages.values()] == ["done", "failed", "stopped after 3 s", "done"]
    assert [[row["recipe"] for row in stage["rows"]] for stage in stages.values()] == [[name] for name in limits]
    assert stages["second"]["error"] == "the reason"
    child = Path("/proc", pid.read_text(), "status")
    assert not child.exists() or "zombie" in child.read_text()  # with the processes that it started
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == list(limits)
    assert (tmp_path / "bench_gpu.md").read_text() in "\n".join(printed)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_the_stage_too(signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        f"import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\nos.kill(os.getppid(), {signum})\n"
    )
    monkeypatch.setattr(gpu, "command_of", lambda *_: [sys.executable, "-c", f"{code}time.sleep(60)"])
    monkeypatch.setattr(Data, "load", lambda _: None)
    with pytest.raises(SystemExit) as stopped:
        main([*TRIAL, "--out", str(tmp_path)])
    assert stopped.value.code == 128 + signum
    assert not Path("/proc", Path("pid").read_text()).exists()


def test_rows_of_before_stay_until_the_data_is_there(tmp_path: Path) -> None:
    (tmp_path / "bench_gpu.rows.jsonl").write_text("{}\n")
    assert main([*TRIAL, "--root", "nowhere", "--out", str(tmp_path)]) == 2
    assert rows_of(tmp_path) == [{}]


def test_what_the_time_does_not_suffice_for_is_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Data, "load", lambda _: None)
    assert main([*TRIAL, "--out", str(tmp_path), "--minutes", "0.1"]) == 0
    assert {stage["status"] for stage in json.loads((tmp_path / "bench_gpu.json").read_text())["stages"].values()} == {
        "skipped"
    }
    assert "the figures mean nothing" in (tmp_path / "bench_gpu.md").read_text()
    assert capsys.readouterr().out.startswith("smoke               skipped (6 s left of 0.1 minutes), 0 s")


@pytest.mark.slow
def test_all_stages_run_on_a_cpu_in_processes_of_their_own(tiny_root: Path, tmp_path: Path) -> None:
    assert main([*TRIAL, "--root", str(tiny_root), "--out", str(tmp_path / "out"), "--minutes", "60"]) == 0
    results = json.loads((tmp_path / "out/bench_gpu.json").read_text())
    assert list(results["stages"]) == list(STAGES)
    assert {stage["status"] for stage in results["stages"].values()} == {"done"}
    assert not [row for stage in results["stages"].values() for row in stage["rows"] if "error" in row]
