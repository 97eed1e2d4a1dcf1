"""``report.html``: one page, which works offline, with all that a test says about a model."""

import base64
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.errors import UserError
from cifar_lit.evaluation import plots, summary, templates
from cifar_lit.evaluation.layers import Layer, explain_layers, format_layers
from cifar_lit.evaluation.table import describe_data
from cifar_lit.files import write_atomic
from cifar_lit.metrics import NUM_BINS, Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from cifar_lit.run import CHECKPOINTS, LAST, read_history

NUM_CONFUSIONS = 5
"""Most frequent confusions that are shown, each with at most ``NUM_EXAMPLES`` images."""
NUM_EXAMPLES = 8
NUM_CLASSES = 10
"""Classes of which an image is shown at the top."""
MAX_CLASSES = 100
"""Classes that the confusion matrix shows; of more, those in the most errors."""


def write_report(path: Path, results: Results, model: ImageClassifier, images: Tensor | None) -> None:
    """Write the report of a model; curves are those of the run in its folder.

    ``images`` are the test images, uint8 ``(N, H, W, 3)``; None if the model was not tested.
    """
    environment = templates(autoescape=True)
    environment.filters |= {"png": _to_png, "percent": summary.percent}
    curves = read_curves(path.parent)
    shape = (3, model.image_size, model.image_size)
    layers, problem = _explain(model, shape)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        headline=summary.headline(results),
        started_from=model.started_from,
        data=describe_data(results),
        class_rows=summary.class_rows(results),
        **_mistakes(results, model, images),
        reliability=_reliability(model.predictions),
        num_bins=NUM_BINS,
        curves=_curves(curves),
        layers=layers,
        layers_lines=format_layers(layers, shape, results.num_parameters).splitlines(),
        layers_problem=problem,
        shape=shape,
        filters=plots.first_filters(model.net),
    )
    write_atomic(path, page)


def _mistakes(results: Results, model: ImageClassifier, images: Tensor | None) -> dict[str, Any]:
    """Return the confusion matrix of the classes that are shown, and wrong predictions with their images."""
    matrix, predictions, classes = results.metrics.get("Confusion/test") or [], model.predictions, model.classes
    if not matrix:
        return {"confusion": [], "shown": [], "groups": [], "errors": [], "examples": []}
    shown = summary.most_confused(matrix, MAX_CLASSES)
    found = summary.confusions(matrix, NUM_CONFUSIONS)
    errors: list[Any] = []
    of_each: list[Any] = []
    examples: list[list[Any]] = [[] for _ in found]
    if predictions is not None and images is not None:
        of_each = plots.one_of_each_class(predictions, images, classes, limit=NUM_CLASSES)
        errors = plots.confident_errors(predictions, images, classes, limit=plots.NUM_ERRORS)
        examples = [
            plots.confident_errors(predictions, images, classes, limit=NUM_EXAMPLES, true=c.true, predicted=c.predicted)
            for c in found
        ]
    return {
        "confusion": [[matrix[row][column] for column in shown] for row in shown],
        "shown": [(classes[label], max(1, sum(matrix[label]))) for label in shown],
        "groups": [(confusion.text(classes), group) for confusion, group in zip(found, examples, strict=True)],
        "errors": errors,
        "examples": of_each,
    }


def _reliability(predictions: Predictions | None) -> str:
    if predictions is None or not len(predictions.labels) or not predictions.confidence.isfinite().all():
        return ""
    return plots.to_svg("Reliability diagram: accuracy by confidence", plots.draw_reliability, predictions)


def _curves(curves: plots.Curves) -> list[str]:
    names = [name for name in ("Loss", "Accuracy") if any(tag in curves for tag in (f"{name}/train", f"{name}/val"))]
    return [plots.to_svg(f"{name} in each epoch", plots.draw_curve, name, curves) for name in names]


def _explain(model: ImageClassifier, shape: tuple[int, ...]) -> tuple[list[Layer], str]:
    """Return the layers of the network, or why they cannot be shown: a run is not lost for its report."""
    images = torch.zeros(2, *shape, dtype=model.mean.dtype, device=model.mean.device)  # 2, since 1 may be squeezed
    compiled = model.hparams["compile"]
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            return explain_layers(model.net, images), ""
    except Exception as error:  # of the network's own code, which may raise anything
        return [], f"{type(error).__name__}: {error}"


def read_curves(folder: Path) -> plots.Curves:
    """Read the curves of a run from its last checkpoint, or else from TensorBoard's files; empty if there are none."""
    try:
        history = read_history(load_checkpoint(folder / CHECKPOINTS / LAST))
    except UserError:  # there is none
        history = {}
    if history:
        tags = {tag for row in history.values() for tag in row if "/" in tag}
        return {tag: [(epoch, row[tag]) for epoch, row in sorted(history.items()) if tag in row] for tag in tags}
    if not list(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    curves = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    shift = any(epoch == 0 for points in curves.values() for epoch, _ in points)  # version 0.1 counted from 0
    return {tag: [(epoch + shift, value) for epoch, value in points] for tag, points in curves.items()}


def _to_png(image: NDArray[np.uint8]) -> str:
    """Return an image as a ``data:`` URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
