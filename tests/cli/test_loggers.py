"""Loggers of the user's: a run has one folder whatever its logger, and a second run overwrites nothing of the first."""

import csv
import json
from pathlib import Path

import pytest

from cifar_lit.loggers import BEST_METRIC
from cifar_lit.main import main
from tests.helpers.processes import curves
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results

CSV = "{class_path: CSVLogger, init_args: {save_dir: .}}"
OWN_CSV = "{class_path: CSVLogger, init_args: {save_dir: csv}}"
OWN = "{class_path: TensorBoardLogger, init_args: {save_dir: tb, sub_dir: deep}}"
HERE = "{class_path: TensorBoardLogger, init_args: {save_dir: .}}"
FILES = ("config.yaml", "results.json", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("logger", "logs"),
    [
        pytest.param(f"[{OWN_CSV}, {OWN}]", ["csv/lightning_logs/version_*", "tb/lightning_logs/version_*"], id="list"),
        pytest.param(f"[{CSV}, {HERE}]", [], id="list in the same place", marks=pytest.mark.slow),
        pytest.param(OWN, ["tb/lightning_logs/version_*/deep"], id="sub_dir", marks=pytest.mark.slow),
        pytest.param("false", [], id="none", marks=pytest.mark.slow),
    ],
)
def test_two_runs_have_two_folders_and_their_logs_lie_where_the_logger_says(
    logger: str, logs: list[str], tiny_args: list[str]
) -> None:
    args = ["fit", *tiny_args, *FEW_EPOCHS, "--report", f"--trainer.logger={logger}"]
    assert main(args) == 0
    first = {name: (RUN / name).read_bytes() for name in FILES}
    assert main([*args, "--seed_everything", "5"]) == 0
    assert {name: (RUN / name).read_bytes() for name in FILES} == first
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["version_0", "version_1"]
    assert all((Path("lightning_logs/version_1") / name).is_file() for name in FILES)
    folders = [sorted(Path().glob(log)) for log in logs]
    assert all(len(pair) == 2 and all(any(folder.iterdir()) for folder in pair) for pair in folders)
    assert b"<h2>Training</h2>" in first["report.html"]


def test_a_logger_of_the_users_writes_into_the_runs_folder_where_that_is_its_place(tiny_args: list[str]) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, f"--trainer.logger=[{CSV}, {HERE}]"]) == 0
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    for path, column in ((RUN / "metrics.csv", "epoch"), (RUN / "csv/metrics.csv", "step")):  # ours, and the logger's
        with path.open() as file:
            assert [row[column] for row in csv.DictReader(file) if row["Loss/val"]] == ["1", "2"]
    assert [epoch for epoch, _ in curves(RUN)["Loss/val"]] == [1, 2]


def test_a_logger_of_another_package_trains_tests_and_resumes(tiny_args: list[str]) -> None:
    own = ["--trainer.logger", "tests.helpers.loggers.Lines", "--trainer.logger.file", "lines.jsonl"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *own]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", "--trust_run"]) == 0
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    lines = [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()]
    assert [step for step, values in lines if "Loss/val" in values] == [1, 2, 3]
    assert [step for step, values in lines if "Accuracy/test" in values] == [2, 3]
    assert read_results()["epochs"] == 3
    assert main(["test", str(RUN), "--trust_run"]) == 0


def test_hyper_parameters_are_logged_unless_told_otherwise(tiny_args: list[str]) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.enable_autolog_hparams", "false"]) == 0
    assert BEST_METRIC not in curves(RUN)
    assert "Loss/val" in curves(RUN)


def test_a_package_that_a_callback_needs_is_named(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def __bool__(self) -> bool:
            return False

        def __str__(self) -> str:
            return "Requirement 'psutil' not met. HINT: Try running `pip install -U 'psutil'`"

    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", Missing(), raising=False)
    monkeypatch.setattr("lightning.pytorch.accelerators.cpu._PSUTIL_AVAILABLE", Missing(), raising=False)
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.callbacks+", "DeviceStatsMonitor"])
    assert code == 2
    assert "pip install -U 'psutil'" in line
    assert not Path("lightning_logs").exists()
