"""The table that a run ends with."""

from pathlib import Path
from typing import Any

import pytest

from cifar_lit.evaluation.table import format_table
from cifar_lit.results import Results
from tests.helpers.results import make_results

METRICS: dict[str, Any] = {
    "Accuracy/val": 0.65,
    "Loss/val": 1.01,
    "Accuracy/test": 0.64321,
    "AccuracyInterval/test": [0.63, 0.6567],
    "TTAAccuracy/test": 0.65432,
    "MacroAccuracy/test": 0.643,
    "Loss/test": 1.02,
    "ClassAccuracy/test/cat": 0.5,
    "ClassAccuracy/test/a class with a very long name": 0.75,
}


@pytest.fixture
def results() -> Results:
    counts = {"num_train": 20_000, "num_val": 5_000, "num_test": 5_000, "num_classes": 2, "num_parameters": 145_578}
    speed = {"epochs": 3, "train_seconds": 61.4, "images_per_second": 1234.5}
    checkpoint = "lightning_logs/version_0/checkpoints/best.ckpt"
    source = {"source": "synthetic", "title": "synthetic"}
    return make_results(METRICS, **source, **counts, **speed, checkpoint=checkpoint, best_epoch=2)


def test_the_table_of_a_run(results: Results) -> None:
    Path("lightning_logs/version_0").mkdir(parents=True)
    Path("lightning_logs/version_0/events.out.tfevents.1").touch()
    table = format_table(results, run="lightning_logs/version_0")
    assert (
        table
        == """\
                      validation        test
accuracy                  0.6500      0.6432
95 % interval                    0.630-0.657
with TTA                              0.6543
macro accuracy                        0.6430
loss                      1.0100      1.0200

test accuracy per class
  cat                                 0.5000
  a class with a very long name       0.7500

data        synthetic: 20,000 train, 5,000 validation, 5,000 test
network     TutorialCNN, 145,578 parameters
training    3 epochs in 61 s, 1,234 images/s
checkpoint  lightning_logs/version_0/checkpoints/best.ckpt, of epoch 2
run         lightning_logs/version_0
curves      tensorboard --logdir lightning_logs
test again  cifar-lit test lightning_logs/version_0"""
    )
    assert max(len(line) for line in table.splitlines()) <= 80


def test_a_report_is_named_if_there_is_one(results: Results, tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    assert format_table(results, run=str(tmp_path)).splitlines()[-1] == f"report      {tmp_path}/report.html"


def test_a_report_of_other_results_is_not_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    assert "report" not in format_table(results, run=str(tmp_path), has_report=False).splitlines()[-1].split()


def test_commands_can_be_pasted_wherever_the_run_is(results: Results) -> None:
    Path("my runs/version 0").mkdir(parents=True)
    Path("my runs/version 0/events.out.tfevents.1").touch()
    lines = format_table(results, run="my runs/version 0", trust=" --trust_run").splitlines()
    assert "curves      tensorboard --logdir 'my runs'" in lines
    assert lines[-1] == "test again  cifar-lit test 'my runs/version 0' --trust_run"


def test_what_is_not_known_has_no_row(results: Results) -> None:
    results.metrics = {**METRICS, "Accuracy/val": None, "Loss/val": None, "Loss/test": None}
    results.num_val, results.epochs, results.train_seconds, results.checkpoint = 0, 1, 1.25, None
    lines = format_table(results, run="runs/x").splitlines()
    assert "accuracy                              0.6432" in lines
    assert "data        synthetic: 20,000 train, 5,000 test" in lines
    assert "training    1 epoch in 1.2 s, 1,234 images/s" in lines
    assert not any(line.startswith(("loss", "top-5", "test again", "curves")) for line in lines)
    results.metrics, results.train_seconds = {}, None
    lines = format_table(results).splitlines()
    assert lines[1:] == ["", *lines[2:]]
    assert [line.split()[0] for line in lines[2:]] == ["data", "network", "checkpoint"]
