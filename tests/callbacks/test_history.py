"""The curves of a run lie in its checkpoint and in ``metrics.csv``, whatever the logger."""

import csv
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar_lit.callbacks.history import COLUMNS, History, MetricsFile
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.evaluation.report import read_curves
from cifar_lit.main import main
from cifar_lit.run_writer import RunWriter
from tests.helpers.processes import curves
from tests.helpers.runs import FEW_EPOCHS, RUN, callback

CSV = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"]


def test_a_report_has_curves_without_tensorboard_also_of_the_epochs_before_a_resume(tiny_args: list[str]) -> None:
    options = [*tiny_args, *FEW_EPOCHS, *CSV, "--trainer.check_val_every_n_epoch", "2", "--report"]
    assert main(["fit", *options, "--trainer.max_epochs", "1"]) == 0
    assert main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3", "--trust_run"]) == 0
    curves = read_curves(RUN)
    assert [epoch for epoch, _ in curves["Loss/train"]] == [1, 2, 3]
    assert [epoch for epoch, _ in curves["Accuracy/val"]] == [2]
    assert "<h2>Training</h2>" in (RUN / "report.html").read_text(encoding="utf-8")
    assert not list(RUN.glob("events*"))
    rows = read_metrics_csv()
    assert tuple(rows[0]) == COLUMNS
    assert [(row["epoch"], row["step"], row["lr"]) for row in rows] == [(str(k), str(6 * k), "0.01") for k in (1, 2, 3)]
    assert 0 < float(rows[0]["seconds"]) < float(rows[1]["seconds"]) < float(rows[2]["seconds"])
    assert [row["Loss/val"] != "" for row in rows] == [False, True, False]
    for tag, points in curves.items():
        assert [float(row[tag]) for row in rows if row[tag]] == pytest.approx([value for _, value in points])


def read_metrics_csv() -> list[dict[str, str]]:
    with (RUN / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_that_was_stopped_in_its_last_validation_has_its_last_row_and_points(
    tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", *tiny_args, *FEW_EPOCHS, "--trainer.log_every_n_steps", "2"]
    on_validation_end = History.on_validation_end

    def patched(history: History, trainer: Any, *args: Any) -> None:
        on_validation_end(history, trainer, *args)
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_validation_end", patched)
        assert main(options) == 143
    assert [row["epoch"] for row in read_metrics_csv()] == ["1"]
    before = curves()
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert [row["epoch"] for row in read_metrics_csv()] == ["1", "2"]
    assert curves() == before
    assert [step for step, _ in before["Loss/step"]] == list(range(2, 13, 2))


def test_a_callback_of_the_users_saves_the_row_of_its_epoch(tiny_args: list[str]) -> None:
    own = callback("ModelCheckpoint", filename="own", save_on_train_epoch_end="true")
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.max_epochs", "1", *own]) == 0
    saved = torch.load(RUN / "checkpoints/own.ckpt", weights_only=True)
    assert {"epoch", "Loss/train", "Loss/val"} <= saved["history"][1].keys()


def test_a_run_that_resumes_from_an_earlier_epoch_has_no_row_of_the_later_ones() -> None:
    trainer: Any = SimpleNamespace(current_epoch=0, global_step=5, callback_metrics={"Loss/train": 2.0, "lr": 0.1})
    history = History(Throughput())
    file = MetricsFile(history, RunWriter.create(Path(), ""))
    file.on_train_start(trainer, trainer)
    assert not (RUN / "metrics.csv").exists()  # the folder of a training without a step is removed
    history.on_train_epoch_end(trainer, trainer)
    file.on_train_epoch_end(trainer, trainer)
    saved: dict[str, Any] = {}
    history.on_save_checkpoint(trainer, trainer, saved)
    trainer.current_epoch, trainer.callback_metrics["Own, one/train"] = 1, 3.0
    history.on_train_epoch_end(trainer, trainer)
    file.on_train_epoch_end(trainer, trainer)
    assert [row["Own, one/train"] for row in read_metrics_csv()] == ["", "3"]
    history.on_load_checkpoint(trainer, trainer, saved)
    assert len(read_metrics_csv()) == 2
    file.on_fit_end(trainer, trainer)  # nothing was trained: all stays
    assert len(read_metrics_csv()) == 2
    file.on_train_start(trainer, trainer)
    assert [row["epoch"] for row in read_metrics_csv()] == ["1"]
    (RUN / "metrics.csv").unlink()  # as in a new folder
    file.on_fit_end(trainer, trainer)
    assert [row["epoch"] for row in read_metrics_csv()] == ["1"]


@pytest.mark.parametrize("history", [1, {1: 1}, {"x": {}}, {1: {"Loss/train": "y"}}, {1: {0: [1]}}], ids=str)
def test_an_odd_history_is_left_out(history: object, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    parts = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    torch.save({**{part: {} for part in parts}, "history": history}, tmp_path / "checkpoints" / "last.ckpt")
    assert read_curves(tmp_path) == {}
