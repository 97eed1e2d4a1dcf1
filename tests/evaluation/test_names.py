"""Whatever the classes are called, the table, report, card and figures show it as text."""

import html
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lit.evaluation.card import write_card
from cifar_lit.evaluation.plots import draw_confusion, drawable, log_figures
from cifar_lit.evaluation.report import write_report
from cifar_lit.evaluation.table import format_table
from cifar_lit.files import printable
from cifar_lit.metrics import Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from tests.helpers.results import make_results

NAMES = [
    *("$x^2$", "$x_{$", r"\frac{1}{", "a_b^{", "$", "%", "#1", "~", "100 %"),
    *("<script>alert(1)</script>", "</style>", "&amp;", '"quoted"', "'", "a | b", "`code`", "![x](http://x.invalid)"),
    *("{{ 7 * 7 }}", "{% include 'x' %}", "{# x #}", "BODY", "---", "- a: b", "!!python/name:os.system", "null"),
    *("猫", "🐱", "👩‍👩‍👧", "مرحبا", "\u00e9", "e\u0301", " cat ", "n" * 300, "two\nlines", "tab\there"),
    *("\x1b[2J", "\x9b31m", "\u202egnp.exe", "\udcff", "\x7f", "../../etc", "a/b", "C:\\x", "\ufeff"),
]


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    """Return a model with predictions for an image of each class, all of them wrong."""
    torch.manual_seed(0)
    model, size = ImageClassifier(classes=NAMES), len(NAMES)
    labels = torch.arange(size)
    model.predictions = Predictions(torch.eye(size).roll(1, 1).mul(3).log_softmax(1), labels, labels)
    return model.eval()


@pytest.fixture(scope="module")
def results(model: ImageClassifier) -> Results:
    assert model.predictions is not None
    return make_results(
        {"Accuracy/val": None, **model.predictions.metrics(NAMES)},
        title="images from \x1b[2J\udcff <b>{{ 1 }}",
        num_val=1,
        num_test=len(NAMES),
        num_classes=len(NAMES),
        checkpoint="\x1b]0;x\x07/best.ckpt",
        command="cifar-lit fit --data.root BODY '{{ 7 * 7 }}</script>\udcff'",
    )


def test_the_report_shows_names_as_text(model: ImageClassifier, results: Results, tmp_path: Path) -> None:
    images = torch.zeros(len(NAMES), 32, 32, 3, dtype=torch.uint8)
    write_report(tmp_path / "report.html", results, model, images)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    headings = [html.unescape(text) for text in re.findall('<th scope="col"><div>(.*?)</div></th>', page)]
    assert headings == [printable(name) for name in NAMES]
    assert "<script" not in page
    assert re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL).count("</style>") == 1
    command = html.unescape(re.findall('<th scope="row">command</th><td>(.*?)</td>', page)[0])
    assert command == printable(str(results.command))


def test_the_table_shows_names_on_one_line_each(results: Results) -> None:
    table = format_table(results, run="runs/\x1b[2J")
    rows = table[table.index("per class\n") : table.index("\n\ndata")].splitlines()[1:]
    assert len(rows) == len(NAMES)
    assert all(character.isprintable() or character in "\n\ufeff\u200d" for character in table)
    assert table.count("\\x1b") == 5  # a class, the data, the checkpoint, the run twice


def test_the_card_shows_names_as_text(model: ImageClassifier, results: Results, tmp_path: Path) -> None:
    data = {"source": "images", "note": "x\n---\nlicense: mit"}
    write_card(tmp_path, model, data, results)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert set(yaml.safe_load(front)) == {
        *("library_name", "pipeline_tag", "tags", "metrics", "model-index", "model_sha256")
    }
    assert "\n---\n" not in body
    assert "<script" not in body.replace(r"\<script", "")
    assert body.count("| 0.000 |\n") == len(NAMES)


def test_figures_show_names_as_text(
    model: ImageClassifier, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.evaluation.plots.NUM_ERRORS", 5)
    images = torch.zeros(len(NAMES), 32, 32, 3, dtype=torch.uint8)
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    log_figures(logger, results, model, 1, images)  # a warning of matplotlib would be an error here
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["images"]) == ["ConfusionMatrix/test", "Errors/test", "Filters"]
    axes = draw_confusion(results.metrics["Confusion/test"], NAMES).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == [drawable(name) for name in NAMES]


def test_a_character_that_no_font_has_is_drawn_as_its_code() -> None:
    assert drawable("cat $x$ é") == "cat $x$ é"
    assert drawable("\U000e0041\x1b") == r"\U000e0041\x1b"
    assert drawable("n" * 25) == "n" * 21 + "..."


def test_results_survive_names(results: Results) -> None:
    again = Results.from_json(results.to_json(), origin="results.json")
    assert again.of_classes("Recall") == results.of_classes("Recall")
