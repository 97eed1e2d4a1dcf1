"""The report: its figures counted by hand, its page whole in one file."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from cifar_lit.cli import main
from cifar_lit.networks import TutorialCNN
from cifar_lit.report import Answers, first_filters, read_curves, score, wilson_interval, write_report
from tests.conftest import FEW_EPOCHS, RUN

CLASSES = ["cat", "dog & <fox>", "ship"]
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
TOLD = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
CONFIDENCE = torch.tensor([0.9, 0.8, 0.95, 0.7, 0.9, 0.6, 0.99, 0.5, 0.8, 0.6])
RESULTS = {
    **{"network": "TutorialCNN", "title": "pictures <mine>", "num_parameters": 5, "checkpoint": "best.ckpt"},
    **{"num_train": 9, "num_val": 0, "num_test": 10, "Accuracy/test": 0.7, "Loss/test": 0.5},
}


def ten_answers() -> Answers:
    """Give ten answers, of which seven are right."""
    probabilities = ((1 - CONFIDENCE) / 2)[:, None].repeat(1, 3)
    probabilities[torch.arange(10), TOLD] = CONFIDENCE
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 32, 32)
    return Answers(TutorialCNN(3), images, LABELS, probabilities, CLASSES)


def test_the_figures_are_those_counted_by_hand() -> None:
    figures = score(ten_answers())
    assert figures["Confusion/test"] == [[3, 1, 0], [0, 2, 1], [1, 0, 2]]
    for name, precision, recall in (("cat", 3 / 4, 3 / 4), ("dog & <fox>", 2 / 3, 2 / 3), ("ship", 2 / 3, 2 / 3)):
        assert figures[f"Precision/test/{name}"] == pytest.approx(precision)
        assert figures[f"Recall/test/{name}"] == pytest.approx(recall)
        assert figures[f"F1/test/{name}"] == pytest.approx(2 * precision * recall / (precision + recall))
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, right in zip(CONFIDENCE.tolist(), (TOLD == LABELS).tolist(), strict=True):
        bins.setdefault(int(confidence * 15), []).append((confidence, right))
    expected = sum(abs(sum(c for c, _ in some) - sum(r for _, r in some)) for some in bins.values()) / 10
    assert figures["CalibrationError/test"] == pytest.approx(expected, abs=1e-6)


def test_the_interval_is_wilsons() -> None:
    # E. B. Wilson's interval for 7 of 10, as R's binom::binom.confint gives it to four digits.
    assert wilson_interval(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    assert wilson_interval(0, 10)[0] == pytest.approx(0)


def test_the_surest_mistakes_come_first() -> None:
    answers = ten_answers()
    assert answers.mistakes == [6, 3, 9]
    assert answers.names(6)[:2] == ("dog & <fox>", "ship")
    assert answers.names(6)[2] == pytest.approx(0.99)


def test_filters_span_the_whole_range() -> None:
    filters = first_filters(TutorialCNN(3))
    assert filters is not None
    assert filters.shape == (32, 5, 5, 3)
    assert {int(picture.min()) for picture in filters} == {0}
    assert {int(picture.max()) for picture in filters} == {255}
    assert first_filters(torch.nn.Linear(3, 3)) is None


def test_the_page_is_one_file_and_shows_all(tmp_path: Path) -> None:
    answers = ten_answers()
    curves = {"Loss/train": [(0, 1.0), (1, 0.5)], "Accuracy/val": [(0, 0.5), (1, 0.7)]}
    write_report(tmp_path / "report.html", answers, {**RESULTS, **score(answers)}, curves)
    page = (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert sum(link.startswith("data:") for link in links) == 3 + 32 + 1  # mistakes, filters, the colours of the matrix
    assert "<fox>" not in page
    assert "dog &amp; &lt;fox&gt;" in page
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        *("Figures", "Classes", "Confusion", "Most confident mistakes"),
        *("Filters of the first layer", "Training", "Run"),
    ]
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert page.count("<svg") == 2
    assert "currentColor" in page

    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []


def test_a_fit_writes_it_and_test_writes_it_again(reported_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (RUN / "report.html").read_text()
    assert "<h2>Training</h2>" in page
    assert f"report      {RUN}/report.html" in reported_run
    results = json.loads((RUN / "results.json").read_text())
    assert sum(map(sum, results["Confusion/test"])) == 24
    right = sum(row[label] for label, row in enumerate(results["Confusion/test"]))
    assert right / 24 == pytest.approx(results["Accuracy/test"])
    low, high = results["AccuracyInterval/test"]
    assert low < results["Accuracy/test"] < high
    assert set(read_curves(RUN)) >= {"Loss/train", "Accuracy/val"}
    (RUN / "report.html").unlink()
    main(["test", str(RUN), "--report"])
    assert f"report      {RUN}/report.html" in capsys.readouterr().out
    assert (RUN / "report.html").read_text().count("<h2>") == page.count("<h2>")
    again = json.loads((RUN / "results.json").read_text())
    assert again.keys() == results.keys()
    assert again["seed"] == 3


def test_without_a_run_there_is_no_place_for_it(run: str, refused: Callable[[list[str]], tuple[int, str]]) -> None:
    (RUN / "checkpoints/best.ckpt").rename("alone.ckpt")
    code, line = refused(["test", "alone.ckpt", "--report"])
    assert code == 2
    assert "--report needs a run's folder" in line


def test_a_fit_does_without_it(tiny_args: list[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--no_report"])
    assert not (RUN / "report.html").exists()
    assert "Confusion/test" not in json.loads((RUN / "results.json").read_text())
