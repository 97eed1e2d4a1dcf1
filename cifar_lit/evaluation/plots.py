"""What is shown of a run: confusion matrix, most confident errors, filters, curves."""

import functools
import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from cifar_lit.metrics import NUM_BINS, Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""For ``Loss/train``, ``Accuracy/val``, ...: epoch (from 1) and value of each point."""
Shown = tuple[NDArray[np.uint8], str, str, float]
"""An image, its true class, the predicted one, and the confidence."""
NUM_ERRORS = 30
"""Most confident errors that are shown."""
NUM_FILTERS = 100
"""Filters that TensorBoard shows: drawing takes 0.1 s for each, and matplotlib refuses an image of some thousands."""
MAX_COUNTS = 30
"""Classes up to which the cells of a confusion matrix show their counts."""
IMAGES_PER_ROW = 10
FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Microsoft YaHei", "Yu Gothic"),
    *("Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS", "Noto Emoji", "Segoe UI Emoji"),
)
"""Fonts for class names, of which the first comes with matplotlib. A glyph is taken from the first that has it."""
_INK = "#123456"  # a placeholder for the colour of a page's text


@contextmanager
def plot_style(**settings: object) -> Iterator[None]:
    """Draw in matplotlib's own style, whatever the user's is, with names as they are and not as formulas."""
    with mpl.rc_context():
        mpl.rcdefaults()
        options: dict[Any, Any] = {"text.parse_math": False, "font.family": list(_fonts()[0]), **settings}
        mpl.rcParams.update(options)
        yield


@functools.cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Return those of the fonts that are here, and all characters that they have."""
    here = set(font_manager.get_font_names())
    names = tuple(name for name in FONTS if name in here)
    charmaps = (font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in names)
    return names, frozenset().union(*charmaps)


def drawable(name: str) -> str:
    """Return a name for a figure: not too long, and with an escape for each character that no font has."""
    short = name if len(name) <= 24 else f"{name[:21]}..."
    glyphs = _fonts()[1]
    return "".join(char if ord(char) in glyphs else ascii(char)[1:-1] for char in short)


def draw_confusion(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, ``(C, C)``: a row per true class, a column per predicted class."""
    counts = np.asarray(confusion)
    size = min(20.0, 2.5 + 0.55 * len(classes))
    figure = Figure(figsize=(size, size), layout="tight")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [drawable(name) for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), count in np.ndenumerate(counts if len(classes) <= MAX_COUNTS else counts[:0]):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure


def draw_images(images: Sequence[NDArray[np.uint8]], titles: Sequence[str]) -> Figure:
    """Draw small images, one or more of ``(height, width, 3)``, ten in a row, each below its title."""
    rows = -(-len(images) // IMAGES_PER_ROW)
    figure = Figure(figsize=(1.3 * IMAGES_PER_ROW, 1.5 * rows), layout="tight")
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, IMAGES_PER_ROW, number + 1)
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontsize=6)
        axes.axis("off")
    return figure


def draw_curve(name: str, curves: Curves) -> Figure:
    """Draw ``Loss`` or ``Accuracy`` over the epochs, in training and validation."""
    figure = Figure(figsize=(4.4, 2.8), layout="tight")
    axes = figure.subplots()
    for split, label, style in (("train", "train", "--"), ("val", "validation", "-")):
        points = curves.get(f"{name}/{split}", [])
        if points:
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, style, marker=".", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_title(name.lower())
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def draw_reliability(predictions: Predictions) -> Figure:
    """Draw the accuracy of the images of each range of confidence, and how many images it has.

    The bins are those of ``calibration_error``; on the diagonal, accuracy and confidence are equal (arXiv 1706.04599).
    """
    confidence, correct = predictions.confidence.double(), predictions.correct.double()
    bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    counts = torch.bincount(bins, minlength=NUM_BINS)
    heights = torch.bincount(bins, correct, minlength=NUM_BINS) / counts.clamp_min(1)
    middles = [(i + 0.5) / NUM_BINS for i in range(NUM_BINS)]
    figure = Figure(figsize=(4.4, 4.0), layout="tight")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    above.bar(middles, heights.tolist(), width=0.92 / NUM_BINS, label="accuracy")
    above.plot([0, 1], [0, 1], "--", color="tab:orange", label="confidence")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False, loc="upper left")
    below.bar(middles, counts.tolist(), width=0.92 / NUM_BINS, color="tab:gray")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set(xlabel="confidence", ylabel="images")
    return figure


def confident_errors(
    predictions: Predictions,
    images: Tensor,
    classes: Sequence[str],
    *,
    limit: int,
    predicted: int | None = None,
    true: int | None = None,
) -> list[Shown]:
    """Return image, true class, predicted class and confidence of wrong predictions, the most confident first."""
    rows = predictions.most_confident_errors(predicted)
    if true is not None:
        rows = rows[predictions.labels[rows] == true]
    return _shown(predictions, images, classes, rows[:limit])


def one_of_each_class(predictions: Predictions, images: Tensor, classes: Sequence[str], *, limit: int) -> list[Shown]:
    """Return the same of the first image of each class, for at most so many classes."""
    rows = [(predictions.labels == label).nonzero()[:1].flatten() for label in range(min(limit, len(classes)))]
    return _shown(predictions, images, classes, torch.cat(rows))


def _shown(predictions: Predictions, images: Tensor, classes: Sequence[str], rows: Tensor) -> list[Shown]:
    return [
        (
            images[predictions.index[row]].numpy(),
            classes[int(predictions.labels[row])],
            classes[int(predictions.predicted[row])],
            float(predictions.confidence[row]),
        )
        for row in rows
    ]


def first_filters(net: nn.Module) -> list[NDArray[np.uint8]]:
    """Return the filters of the first convolution over colours as images, each scaled to 0..255; [] without one."""
    convs = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    layer = next((layer for layer in convs if (layer.in_channels, layer.groups) == (3, 1)), None)
    if layer is None:
        return []
    weights = layer.weight.detach().float().cpu()
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    scaled = (weights - low) / (high - low).clamp_min(1e-12) * 255
    return list(scaled.round().byte().permute(0, 2, 3, 1).numpy())


def log_figures(
    logger: TensorBoardLogger, results: Results, model: ImageClassifier, epoch: int, images: Tensor | None = None
) -> None:
    """Show the confusion matrix in TensorBoard and, given the test images, the most confident errors and filters."""
    if model.predictions is None:  # no test image was scored
        return
    with plot_style():
        figures = {"ConfusionMatrix/test": draw_confusion(results.metrics["Confusion/test"], model.classes)}
        if images is not None:
            errors = confident_errors(model.predictions, images, model.classes, limit=NUM_ERRORS)
            if errors:
                images_of, true, predicted, confidences = zip(*errors, strict=True)
                pairs = zip(map(drawable, true), map(drawable, predicted), confidences, strict=True)
                titles = [f"{true}\npredicted {predicted}, {confidence:.2f}" for true, predicted, confidence in pairs]
                figures["Errors/test"] = draw_images(images_of, titles)
            filters = first_filters(model.net)[:NUM_FILTERS]
            if filters:
                figures["Filters"] = draw_images(filters, [""] * len(filters))
        for name, figure in figures.items():
            logger.experiment.add_figure(name, figure, epoch)


def to_svg(description: str, draw: Callable[..., Figure], *args: object) -> str:
    """Draw a figure as an ``<svg>`` element, in the colour of the text around it."""
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cifar_lit", **dict.fromkeys(coloured, _INK)}
    buffer = io.StringIO()
    with plot_style(**style):
        draw(*args).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue().replace(_INK, "currentColor")
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing[drawing.index("<svg") :])  # each figure numbers its parts anew
    return drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
