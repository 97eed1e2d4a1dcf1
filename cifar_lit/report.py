"""What a model gets right and wrong on the test images: figures, pictures, and one page that shows them."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cifar_lit.callbacks import draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_MISTAKES = 30
INK = "#123456"
"""The colour of what is drawn, which the page replaces by that of its text, light or dark."""


@dataclass(frozen=True)
class Answers:
    """A model and what it says to the test images.

    Attributes:
        net: Its network.
        images: ``(N, 3, 32, 32)``, uint8.
        labels: ``(N,)``, what is true.
        probabilities: ``(N, C)``, what the model says.
        classes: The C names.
    """

    net: nn.Module
    images: Tensor
    labels: Tensor
    probabilities: Tensor
    classes: Sequence[str]

    @property
    def mistakes(self) -> list[int]:
        """The places of the mistakes that the model is surest of, the surest first."""
        return self._surest(self.probabilities.argmax(1) != self.labels)[:NUM_MISTAKES]

    def mistakes_as(self, label: int) -> list[int]:
        """Give the places of the images that are taken for a class by mistake, the surest first."""
        predicted = self.probabilities.argmax(1)
        return self._surest((predicted == label) & (predicted != self.labels))

    def _surest(self, chosen: Tensor) -> list[int]:
        places = chosen.nonzero().squeeze(1)
        confidence = self.probabilities.amax(1)[places]
        return [int(place) for place in places[confidence.argsort(descending=True, stable=True)]]

    def names(self, place: int) -> tuple[str, str, float]:
        """Give the true class of an image, the one that it is taken for, and how sure the model is of it."""
        confidence, predicted = self.probabilities[place].max(0)
        return self.classes[int(self.labels[place])], self.classes[int(predicted)], float(confidence)


def wilson_interval(num_right: int, num_images: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute the interval that an accuracy lies in, given a sample (E. B. Wilson, 1927).

    Args:
        num_right: Right answers.
        num_images: All answers, 1 or more.
        z: Standard deviations to each side; this is for 95 %.

    Returns:
        Its ends.
    """
    share = num_right / num_images
    middle = share + z * z / (2 * num_images)
    width = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images * num_images))
    return (middle - width) / (1 + z * z / num_images), (middle + width) / (1 + z * z / num_images)


def score(answers: Answers) -> dict[str, Any]:
    """Compute the figures of a report.

    Args:
        answers: The answers.

    Returns:
        ``AccuracyInterval/test`` (95 %), ``CalibrationError/test`` (expected calibration error in 15 bins), for each
        class ``Precision/test/NAME``, ``Recall/test/NAME`` and ``F1/test/NAME``, and ``Confusion/test``, C rows of
        counts: the true class's images by the class that they were taken for.
    """
    given = (answers.probabilities, answers.labels, len(answers.classes))
    num_right = int((answers.probabilities.argmax(1) == answers.labels).sum())
    figures: dict[str, Any] = {
        "AccuracyInterval/test": list(wilson_interval(num_right, len(answers.labels))),
        "CalibrationError/test": float(multiclass_calibration_error(*given, n_bins=15)),
    }
    metrics = {"Precision": multiclass_precision, "Recall": multiclass_recall, "F1": multiclass_f1_score}
    for name, metric in metrics.items():
        values = metric(*given, average="none")
        figures |= {f"{name}/test/{label}": float(value) for label, value in zip(answers.classes, values, strict=True)}
    figures["Confusion/test"] = multiclass_confusion_matrix(*given).tolist()
    return figures


def first_filters(net: nn.Module) -> NDArray[np.uint8] | None:
    """Give the filters of the first convolution, which look at colours, as pictures.

    Args:
        net: The network.

    Returns:
        ``(F, height, width, 3)``, each scaled to the whole range; None where no convolution looks at colours.
    """
    layer = next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3), None)
    if layer is None:
        return None
    weights = layer.weight.detach().float().cpu()
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    scaled = (weights - low) / (high - low).clamp_min(1e-12) * 255
    pictures: NDArray[np.uint8] = scaled.round().byte().permute(0, 2, 3, 1).numpy()
    return pictures


def draw_pictures(pictures: NDArray[np.uint8], titles: Sequence[str]) -> "Figure":
    """Draw small pictures side by side.

    Args:
        pictures: ``(N, height, width, 3)``, N above 0.
        titles: What stands above each.

    Returns:
        The figure, with ten in a row.
    """
    from matplotlib.figure import Figure

    columns = 10
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.5 * rows), layout="tight")
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=6)
        axes.axis("off")
    return figure


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """Draw losses and accuracies over the epochs.

    Args:
        curves: For ``Loss/train``, ``Accuracy/val``, ...: epoch (from 0) and value of each point.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="tight")
    for number, name in enumerate(("Loss", "Accuracy")):
        axes = figure.add_subplot(1, 2, number + 1)
        for split, style in (("train", "--"), ("val", "-")):
            points = curves.get(f"{name}/{split}", [])
            label = {"train": "train", "val": "validation"}[split]
            epochs, values = [epoch + 1 for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, style, marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_title(name.lower())
        axes.legend(frameon=False)
    return figure


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run.

    Args:
        run: Its folder.

    Returns:
        For each name the points: epoch and value; empty where TensorBoard's files are not there.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not list(run.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(run)).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def report_pictures(answers: Answers) -> dict[str, "Figure"]:
    """Draw what TensorBoard shows of a report, beside the confusion matrix.

    Args:
        answers: The answers.

    Returns:
        Figures by their names.
    """
    figures = {}
    mistakes = answers.mistakes
    if mistakes:
        titles = ["{}\ntaken for {}, {:.2f}".format(*answers.names(place)) for place in mistakes]
        figures["Mistakes/test"] = draw_pictures(answers.images[mistakes].permute(0, 2, 3, 1).numpy(), titles)
    filters = first_filters(answers.net)
    if filters is not None:
        figures["Filters"] = draw_pictures(filters, [""] * len(filters))
    return figures


def write_report(
    path: Path, answers: Answers, results: Mapping[str, Any], curves: Mapping[str, Sequence[tuple[int, float]]]
) -> None:
    """Write the page: one file, which needs no network.

    Args:
        path: The file.
        answers: The answers.
        results: The figures of the run, with those of ``score``.
        curves: As from ``read_curves``.
    """
    grid = ""
    for place in answers.mistakes:
        true, predicted, confidence = answers.names(place)
        caption = f"<b>{html.escape(true)}</b><br>taken for {html.escape(predicted)}, {confidence:.2f}"
        grid += _picture(answers.images[place].permute(1, 2, 0).numpy(), caption)
    sections = {
        "Figures": _figures_table(results),
        "Classes": _class_table(results, answers.classes),
        "Confusion": _svg(draw_confusion(np.array(results["Confusion/test"]), list(answers.classes))),
        "Most confident mistakes": f'<div class="grid">{grid}</div>' if grid else "<p>There is none.</p>",
    }
    filters = first_filters(answers.net)
    if filters is not None:
        pictures = "".join(_picture(picture) for picture in filters)
        sections["Filters of the first layer"] = f'<div class="grid small">{pictures}</div>'
    if curves:
        sections["Training"] = _svg(draw_curves(curves))
    sections["Run"] = _run_table(results)
    body = "\n".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items())
    title = html.escape(f"{results['network']} on {results['title']}")
    part = path.with_name(f".{path.name}.part")
    part.write_text(PAGE.replace("TITLE", title).replace("BODY", body), encoding="utf-8")
    part.replace(path)


def _figures_table(results: Mapping[str, Any]) -> str:
    low, high = results["AccuracyInterval/test"]
    rows = [("accuracy", f"{results['Accuracy/test']:.4f}"), ("95 % interval", f"{low:.4f} to {high:.4f}")]
    for title, key in (
        ("with test-time views", "ViewsAccuracy/test"),
        ("macro accuracy", "MacroAccuracy/test"),
        ("top-5 accuracy", "Top5Accuracy/test"),
        ("expected calibration error", "CalibrationError/test"),
        ("loss", "Loss/test"),
        ("accuracy on validation", "Accuracy/val"),
    ):
        if results.get(key) is not None:
            rows.append((title, f"{results[key]:.4f}"))
    return _table([], rows)


def _class_table(results: Mapping[str, Any], classes: Sequence[str]) -> str:
    counts = results["Confusion/test"]
    rows = [
        (name, *(f"{results[f'{key}/test/{name}']:.3f}" for key in ("Precision", "Recall", "F1")), f"{sum(count):,}")
        for name, count in zip(classes, counts, strict=True)
    ]
    return _table(["class", "precision", "recall", "F1", "images"], rows)


def _run_table(results: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{results[f'num_{key}']:,} {key}" for key in ("train", "val", "test") if results[f"num_{key}"])
    rows = [
        ("data", f"{results['title']}: {sizes}"),
        ("network", f"{results['network']}, {results['num_parameters']:,} parameters"),
        *((key, str(results[key])) for key in ("recipe", "seed", "epochs", "device", "command") if key in results),
    ]
    if "train_seconds" in results:
        rows.append(("time", f"{results['train_seconds']:.0f} s, {results['images_per_second']:,.0f} images/s"))
    if results.get("best_epoch"):
        rows.append(("best epoch on validation", str(results["best_epoch"])))
    rows.append(("checkpoint", str(results["checkpoint"])))
    return f'<div class="wrap">{_table([], rows)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        first, *others = (html.escape(cell) for cell in cells)
        return f'<tr><th scope="row">{first}</th>' + "".join(f"<{tag}>{cell}</{tag}>" for cell in others) + "</tr>"

    return "<table>" + (row(head, "th") if head else "") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _picture(pixels: NDArray[np.uint8], caption: str = "") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img alt="" src="data:image/png;base64,{source}">{text}</figure>'


def _svg(figure: "Figure") -> str:
    """Turn a figure into a part of the page, drawn in the colour of its text."""
    import matplotlib as mpl

    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=INK)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
        for line in axes.spines.values():
            line.set_color(INK)
        if legend := axes.get_legend():
            for entry in legend.get_texts():
                entry.set_color(INK)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cifar_lit"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d9dee5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --paper: #12161c; --line: #333b46; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 50rem;
  margin: auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
.wrap td { overflow-wrap: anywhere; }
section { overflow-x: auto; }
@media (max-width: 30rem) { table { font-size: .85rem; } th, td { padding-right: .5rem; } }
svg { width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .8rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(2.5rem, 1fr)); gap: .3rem; }
figure { margin: 0; } figcaption { font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
img { width: 100%; image-rendering: pixelated; border-radius: 3px; display: block; }
</style>
</head>
<body>
<h1>TITLE</h1>
BODY
</body>
</html>
"""
