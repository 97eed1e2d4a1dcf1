"""``results.json``: its schema, older and newer versions, damaged files."""

import json
from typing import Any

import pytest

from cifar_lit.errors import UserError
from cifar_lit.metrics import wilson_interval
from cifar_lit.results import VERSION, Results

FIELDS: dict[str, Any] = {
    "source": "images",
    "title": "pictures",
    "num_train": 48,
    "num_val": 12,
    "num_test": 24,
    "num_classes": 3,
    "network": "TutorialCNN",
    "num_parameters": 145_123,
}
METRICS = {
    "Accuracy/test": 0.5,
    "Precision/test/cat": 0.25,
    "Precision/test/a/b": 1.0,
    "Confusion/test": [[1, 2], [3, 4]],
}


def read(content: object) -> Results:
    return Results.from_json(json.dumps(content), origin="results.json")


def test_a_file_gives_back_what_was_written() -> None:
    results = Results(**FIELDS, seed=3, best_epoch=1, train_seconds=1.5, versions={"torch": "2"}, metrics=METRICS)
    results.precision, results.kernels = "32-true", {"64x64@16": "winograd"}
    content = json.loads(results.to_json())
    assert content["version"] == VERSION
    assert content["Accuracy/test"] == 0.5  # metrics stand beside the fields
    assert Results.from_json(results.to_json(), origin="") == results


def test_large_figures_and_an_accuracy_of_zero_are_read_again() -> None:
    metrics: dict[str, Any] = {"AccuracyInterval/test": list(wilson_interval(0, 7)), "Accuracy/test": 0.0}
    results = Results(**FIELDS, multiplications=15 * 10**15, metrics=metrics)  # of 200 epochs of ResNet18
    assert Results.from_json(results.to_json(), origin="") == results


def test_a_metric_that_is_not_finite_becomes_null() -> None:
    text = Results(**FIELDS, metrics={"Loss/test": float("nan"), "Loss/val": float("inf")}).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read(json.loads(text)).metrics == {"Loss/test": None, "Loss/val": None}


def test_the_metrics_of_the_classes() -> None:
    assert Results(**FIELDS, metrics=METRICS).of_classes("Precision") == {"cat": 0.25, "a/b": 1.0}


def test_a_file_of_version_1_is_read() -> None:
    results = read({**FIELDS, "ViewsAccuracy/test": 0.6, "Accuracy/test": 0.5, "epochs": 2})
    assert results.version == VERSION
    assert results.metrics == {"TTAAccuracy/test": 0.6, "Accuracy/test": 0.5}
    assert results.epochs == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"source": "ima', "results.json is damaged: it is not JSON"),
        ("[" * 100_000, "results.json is damaged"),
        ("null", "results.json is damaged: it holds no results"),
        ("{}", "results.json is damaged: source is missing, or of another type"),
        (json.dumps({**FIELDS, "num_test": "many"}), "num_test is missing, or of another type"),
        (json.dumps({**FIELDS, "seed": "0"}), "seed is missing, or of another type"),
        (json.dumps({**FIELDS, "version": 99}), "results.json has version 99 of the schema"),
        (json.dumps({**FIELDS, "version": "new"}), "results.json has version new of the schema"),
    ],
    ids=lambda value: value[:40],
)
def test_a_damaged_file_is_named_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        Results.from_json(text, origin="results.json")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
