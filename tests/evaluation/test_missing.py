"""Table, report and card of every way in which a run can end: what is not known is left out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.evaluation.card import write_card
from cifar_lit.evaluation.plots import draw_curve, plot_style, to_svg
from cifar_lit.evaluation.report import write_report
from cifar_lit.evaluation.table import format_table
from cifar_lit.metrics import Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results


def written(folder: Path, num_classes: int, labels: list[int], metrics: dict[str, Any] | None, **fields: Any) -> str:
    """Write everything about a model that was tested, and return the report and the table."""
    model = ImageClassifier(classes=[f"class {i}" for i in range(num_classes)]).eval()
    log_probs = torch.full((len(labels), num_classes), -math.log(num_classes))
    if fields.pop("is_nan", False):
        log_probs = log_probs * math.nan
    truth = torch.tensor(labels, dtype=torch.int64)
    model.predictions = Predictions(log_probs, truth, torch.arange(len(labels)))
    if metrics is None:
        metrics = model.predictions.metrics(model.classes)
    known = {"source": "images", "title": "images", "num_train": 0, "num_val": 0, "network": "TutorialCNN"}
    sizes = {"num_test": len(labels), "num_classes": num_classes, "num_parameters": 1}
    results = Results(**{**known, **sizes, "metrics": metrics, **fields})
    for one in (results, Results.from_json(results.to_json(), origin="results.json")):
        write_report(folder / "report.html", one, model, torch.zeros(len(labels), 32, 32, 3, dtype=torch.uint8))
        write_card(folder, model, {}, one)
        table = format_table(one)
    return (folder / "report.html").read_text(encoding="utf-8") + table


@pytest.mark.parametrize(
    ("num_classes", "labels", "metrics", "fields"),
    [
        (3, [0, 0, 1], None, {}),
        (2, [1], None, {"epochs": 0, "train_seconds": 0.0, "images_per_second": 0.0}),
        (100, list(range(100)), None, {}),
        (3, [0, 1, 2], None, {"is_nan": True}),
        (2, [0, 1], {"Accuracy/val": None, "Loss/val": math.nan, "Accuracy/test": 0.5}, {"checkpoint": None}),
        (2, [], {}, {"title": "", "train_seconds": 1.0}),
    ],
    ids=["a class without test images", "two classes", "100 classes", "NaN", "a few metrics", "no metrics"],
)
def test_what_is_not_known_is_left_out(
    num_classes: int, labels: list[int], metrics: dict[str, Any] | None, fields: dict[str, Any], tmp_path: Path
) -> None:
    page = written(tmp_path, num_classes, labels, metrics, **fields)
    assert ("no images" in page) == (labels == [0, 0, 1] or (num_classes == 2 and labels == [1]))
    assert page.count('<th scope="col"><div>') == (num_classes if metrics is None else 0)
    assert "None" not in page.replace("<p>None.</p>", "")


@pytest.mark.parametrize("points", [[], [(0, math.nan)], [(0, math.inf), (1, 1.0)], [(0, 1e300), (1, -1e300)]], ids=str)
def test_curves_of_any_values_are_drawn(points: list[tuple[int, float]]) -> None:
    with plot_style():
        assert "<svg" in to_svg("a loss", draw_curve, "Loss", {"Loss/train": points, "Loss/val": points})
