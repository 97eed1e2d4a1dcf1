"""The table that a run ends with, and its file."""

import json
from pathlib import Path

from cifar_lit.results import format_table, save_results

RESULTS = {
    "Accuracy/val": 0.65,
    "Loss/val": 1.01,
    "Accuracy/test": 0.64321,
    "ViewsAccuracy/test": 0.65432,
    "Loss/test": 1.02,
    "MacroAccuracy/test": 0.643,
    "ClassAccuracy/test/cat": 0.5,
    "ClassAccuracy/test/a class with a very long name": 0.75,
    "title": "synthetic",
    "num_train": 20_000,
    "num_val": 5_000,
    "num_test": 5_000,
    "network": "TutorialCNN",
    "num_parameters": 145_578,
    "checkpoint": "lightning_logs/version_0/checkpoints/best.ckpt",
}


def test_the_table_shows_the_figures_and_fits_a_terminal() -> None:
    lines = format_table({**RESULTS, "epochs": 3, "train_seconds": 61.4, "images_per_second": 1234.5}).splitlines()
    assert "accuracy                  0.6500      0.6432" in lines
    assert "macro accuracy                        0.6430" in lines
    assert not any("top-5" in line for line in lines)
    assert "  cat                                 0.5000" in lines
    assert "  a class with a very long name       0.7500" in lines
    assert "data        synthetic: 20,000 train, 5,000 validation, 5,000 test" in lines
    assert "network     TutorialCNN, 145,578 parameters" in lines
    assert "training    3 epochs in 61 s, 1,234 images/s" in lines
    assert max(len(line) for line in lines) <= 80
    one = format_table({**RESULTS, "epochs": 1, "train_seconds": 61.4, "images_per_second": 1234.5})
    assert "training    1 epoch in 61 s, 1,234 images/s" in one.splitlines()


def test_a_run_without_validation_has_no_validation_figures() -> None:
    lines = format_table({**RESULTS, "Accuracy/val": None, "Loss/val": None, "num_val": 0}).splitlines()
    assert "accuracy                              0.6432" in lines
    assert "data        synthetic: 20,000 train, 5,000 test" in lines
    assert not any(line.startswith(("training", "run")) for line in lines)


def test_the_file_holds_what_was_given_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    save_results(RESULTS, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_figure_that_is_no_number_becomes_null(tmp_path: Path) -> None:
    save_results({"Loss/test": float("nan"), "epochs": 3}, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == {"Loss/test": None, "epochs": 3}
    assert "NaN" not in (tmp_path / "results.json").read_text()
