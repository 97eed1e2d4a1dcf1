"""The curves of a run lie in its checkpoint, whatever the logger."""

from pathlib import Path

import pytest
import torch

from cifar_lit.evaluation.report import read_curves
from cifar_lit.main import main
from tests.helpers.runs import FEW_EPOCHS, RUN

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


@pytest.mark.parametrize("history", [1, {1: 1}, {"x": {}}, {1: {"Loss/train": "y"}}, {1: {0: [1]}}], ids=str)
def test_an_odd_history_is_left_out(history: object, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    parts = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    torch.save({**{part: {} for part in parts}, "history": history}, tmp_path / "checkpoints" / "last.ckpt")
    assert read_curves(tmp_path) == {}
