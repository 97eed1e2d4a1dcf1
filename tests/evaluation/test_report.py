"""The report and its plots: one complete page, the right images, nothing from elsewhere."""

import base64
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cifar_lit.evaluation.plots import NUM_FILTERS, draw_confusion, draw_curve, first_filters, log_figures
from cifar_lit.evaluation.report import read_curves, write_report
from cifar_lit.metrics import Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.results import Results
from tests.helpers.results import make_results

CLASSES = ["cat", "dog & <fox>", "ship"]
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
CONFIDENCE = torch.tensor([0.9, 0.8, 0.95, 0.7, 0.9, 0.6, 0.99, 0.5, 0.8, 0.6])
IMAGES = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 32, 32, 3).contiguous()


@pytest.fixture
def model() -> ImageClassifier:
    """Return a model with predictions for every second of twenty images, each of one value."""
    model = ImageClassifier(classes=CLASSES)
    probabilities = ((1 - CONFIDENCE) / 2)[:, None].repeat(1, 3)
    probabilities[torch.arange(10), PREDICTED] = CONFIDENCE
    model.predictions = Predictions(probabilities.log(), LABELS, torch.arange(0, 20, 2))
    return model


def results_of(model: ImageClassifier) -> Results:
    assert model.predictions is not None
    metrics = {"Accuracy/val": None, **model.predictions.metrics(CLASSES)}
    return make_results(metrics, title="pictures <mine>", checkpoint="best.ckpt", seed=0)


class Checker(HTMLParser):
    """Checks that each tag is closed, and collects the cells of the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open_tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open_tags[-1:] and self.open_tags[-1] in ("th", "td", "small", "div") and "tr" in self.open_tags:
            self.rows[-1].append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def test_the_page_is_one_file_and_shows_everything(model: ImageClassifier, tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    for epoch, value in ((0, 1.0), (1, 0.5)):
        writer.add_scalar("Loss/train", value, epoch)
        writer.add_scalar("Accuracy/val", 1 - value, epoch)
    writer.close()
    model.hparams["weights"] = "/home/me/net.pth"
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    page = (tmp_path / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if "tfevents" not in path.name) == ["report.html"]
    assert "<fox>" not in page
    assert "<mine>" not in page
    assert "dog &amp; &lt;fox&gt;" in page
    sections = ["Images", "Metrics", "Classes", "Frequent confusions", "Confusion matrix", "Calibration"]
    sections += ["Most confident errors", "Training", "Layers", "Filters of the first layer", "Run"]
    assert re.findall("<h2>(.*?)</h2>", page) == sections
    assert len(re.findall("<h2>.*?</h2>\n(?:<p>|$)", page)) == len(sections)  # each says what it is
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    descriptions = re.findall('<svg role="img" aria-label="(.*?)"', page)
    assert descriptions == [
        "Reliability diagram: accuracy by confidence",
        "Loss in each epoch",
        "Accuracy in each epoch",
    ]
    assert page.count("<svg") == 3
    assert "currentColor" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert sum(link.startswith("data:") for link in links) == 3 + 3 + 3 + 32  # images, confusions, errors, filters
    assert 'alt=""' not in page

    checker = Checker()
    checker.feed(page)
    assert checker.open_tags == []
    assert ["accuracy", "0.7000", "share of the images that are classified correctly"] in checker.rows
    assert [row[:2] for row in checker.rows if row[:1] == ["95 % interval"]] == [["95 % interval", "0.3968 to 0.8922"]]
    assert ["cat", "0.750", "0.750", "0.750", "4"] in checker.rows
    assert ["dog & <fox>", "0.667", "0.667", "0.667", "3"] in checker.rows
    assert ["data", "pictures <mine>: 9 train, 10 test"] in checker.rows
    assert ["seed", "0"] in checker.rows
    assert ["started from the weights", "net.pth"] in checker.rows
    assert ["cat", "3", "1"] in checker.rows  # of the confusion matrix, where a cell without images is empty
    assert not {"top-5 accuracy", "accuracy on validation", "command", "time"} & {row[0] for row in checker.rows if row}


def test_the_errors_are_shown_with_their_own_images(model: ImageClassifier, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("Most confident errors") : page.index("Layers</h2>")]
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]*)", section)]
    assert [np.asarray(image)[0, 0, 0] for image in shown] == [12, 6, 18]  # the rows 6, 3, 9 of every second image
    captions = re.findall(r"<figcaption><b>(.*?)</b><br>(.*?)</figcaption>", section)
    assert captions == [
        ("dog &amp; &lt;fox&gt;", "predicted ship, 0.99"),
        ("cat", "predicted dog &amp; &lt;fox&gt;, 0.70"),
        ("ship", "predicted cat, 0.60"),
    ]


def test_a_model_without_errors_filters_and_curves(model: ImageClassifier, tmp_path: Path) -> None:
    assert model.predictions is not None
    model.predictions = Predictions(model.predictions.log_probs, PREDICTED, torch.arange(10))
    model.net = torch.nn.Linear(3, 3)
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<p>None.</p>") == 2
    assert "Filters" not in page
    assert "Training" not in page
    assert "does not fit: it expects 3 features, and gets 32, from the image\n" in page


class Bare(torch.nn.Module):
    """Calls none of its modules, and begins with a convolution of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, groups=3)
        self.last = torch.nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.nn.functional.conv2d(images, self.conv.weight, self.conv.bias, groups=3).mean((2, 3))
        return torch.nn.functional.linear(features, self.last.weight, self.last.bias)


def test_a_network_that_calls_none_of_its_modules_has_a_report(model: ImageClassifier, tmp_path: Path) -> None:
    model.net = Bare()
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    page = (tmp_path / "report.html").read_text()
    assert '<tr><th scope="row">not called</th><td></td><td>5</td>' in page  # which the results have
    assert "Filters" not in page


class Untraceable(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("<no> such layer")


def test_a_report_says_why_it_cannot_show_the_layers_and_does_without_a_test(
    model: ImageClassifier, tmp_path: Path
) -> None:
    results = results_of(model)
    model.predictions, model.net = None, Untraceable()
    results.metrics, results.num_test, results.num_val = {"Accuracy/val": 0.5}, 0, 4
    write_report(tmp_path / "report.html", results, model, None)
    page = (tmp_path / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Metrics", "Layers", "Run"]
    assert "does not take a batch of two images here: KeyError: &#39;&lt;no&gt; such layer&#39;</p>" in page
    assert "<p>There are no test metrics: no test image was scored.</p>" in page
    assert "It classifies 50.0\u00a0% of 4 validation images correctly; it was not tested.</p>" in page


def test_the_layers_are_those_of_the_run_at_its_image_size(model: ImageClassifier, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("<h2>Layers") : page.index("<h2>Filters")]
    assert "image of 3 x 32 x 32." in section
    assert "floor((32 + 2*2 - 1*(5 - 1) - 1) / 1 + 1) = 32\n" in section
    assert "  multiplications 32*32*32*3*5*5 = 2,457,600\n" in section
    assert "12,353,728 multiplications per image\n" in section


@pytest.mark.slow
def test_a_compiled_network_is_not_compiled_again_for_its_layers(model: ImageClassifier, tmp_path: Path) -> None:
    model.hparams["compile"] = True
    model.net.compile(backend=lambda *_: pytest.fail("compiled"))
    write_report(tmp_path / "report.html", results_of(model), model, IMAGES)
    assert "multiplications per image\n" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("images", [None, IMAGES], ids=["few", "all"])
def test_tensorboard_shows_the_confusion_matrix_and_with_the_images_the_errors_and_filters(
    images: Tensor | None, model: ImageClassifier, tmp_path: Path
) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    results, predictions = results_of(model), model.predictions
    model.predictions = None  # no test image was scored
    log_figures(logger, results, model, 4, images)
    assert list(tmp_path.iterdir()) == []
    model.predictions = predictions
    log_figures(logger, results, model, 4, images)
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    expected = ["ConfusionMatrix/test"] + (["Errors/test", "Filters"] if images is not None else [])
    assert sorted(events.Tags()["images"]) == expected
    assert [image.step for image in events.Images("ConfusionMatrix/test")] == [4]


def test_filters_span_the_whole_range() -> None:
    filters = first_filters(TutorialCNN(3))
    assert [filter_.shape for filter_ in filters] == [(5, 5, 3)] * 32
    assert {int(filter_.min()) for filter_ in filters} == {0}
    assert {int(filter_.max()) for filter_ in filters} == {255}
    assert first_filters(torch.nn.Linear(3, 3)) == []
    grouped = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, groups=3), torch.nn.Conv2d(3, 2, 1))
    assert [filter_.shape for filter_ in first_filters(grouped)] == [(1, 1, 3)] * 2  # of the first over all colours


def test_tensorboard_draws_no_more_filters_than_are_seen(
    model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(images: Sequence[object], _: object) -> Figure:
        drawn.append(len(images))
        return Figure()

    monkeypatch.setattr("cifar_lit.evaluation.plots.draw_images", draw)
    model.net = torch.nn.Conv2d(3, 5000, 1)  # of which matplotlib would refuse the figure
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    log_figures(logger, results_of(model), model, 1, IMAGES)
    logger.experiment.close()
    assert drawn == [3, NUM_FILTERS]


@pytest.mark.parametrize("num_classes", [3, 31])
def test_a_confusion_matrix_has_its_counts_unless_there_are_too_many(num_classes: int) -> None:
    counts = np.arange(num_classes**2).reshape(num_classes, num_classes)
    (axes,) = draw_confusion(counts, [str(i) for i in range(num_classes)]).axes
    shown = [text.get_text() for text in axes.texts]
    assert shown == ([str(count) for count in counts.flatten()] if num_classes == 3 else [])
    (image,) = axes.images
    rows = np.asarray(image.get_array()).sum(1)
    assert rows == pytest.approx(np.ones(num_classes))  # shares of each true class


def test_curves_count_whole_epochs_from_one() -> None:
    curves = {"Loss/train": [(1, 2.0), (2, 1.0)], "Loss/val": [(2, 1.5)]}
    (axes,) = draw_curve("Loss", curves).axes
    lines = [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in axes.lines]
    assert lines == [([1, 2], [2.0, 1.0]), ([2], [1.5])]
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert draw_curve("Accuracy", curves).axes[0].get_legend() is None  # which would warn that it is empty


def test_curves_of_a_run_without_tensorboard_are_empty(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == {}
