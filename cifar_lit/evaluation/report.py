"""``report.html``: one page, which works offline, with all that a test says about a model."""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.errors import UserError
from cifar_lit.evaluation import plots, templates
from cifar_lit.evaluation.table import describe_data
from cifar_lit.files import write_atomic
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from cifar_lit.run import CHECKPOINTS, LAST, read_history


def write_report(path: Path, results: Results, model: ImageClassifier, images: Tensor) -> None:
    """Write the report of a model that was tested on these images; curves are those of the run in its folder."""
    assert model.predictions is not None
    environment = templates(autoescape=True)
    environment.filters["png"] = _to_png
    curves = read_curves(path.parent)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        data=describe_data(results),
        classes=model.classes,
        confusion=results.metrics.get("Confusion/test") or [],
        errors=plots.confident_errors(model.predictions, images, model.classes, limit=plots.NUM_ERRORS),
        filters=plots.first_filters(model.net),
        curves_plot=plots.to_svg(plots.draw_curves, curves) if curves else "",
    )
    write_atomic(path, page)


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
