"""``report.html``: one page, which works offline, with all that a test says about a model."""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.evaluation import plots, templates
from cifar_lit.evaluation.table import describe_data
from cifar_lit.files import write_atomic
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from cifar_lit.run import CHECKPOINTS, CURVES, LAST


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
        curves = load_checkpoint(folder / CHECKPOINTS / LAST).get(CURVES)
        if curves:
            return {
                str(name): [(int(epoch), float(points[epoch])) for epoch in sorted(points)]
                for name, points in curves.items()
            }
    except (ValueError, AttributeError, TypeError, OverflowError):  # there is none, or it has anything in it
        pass
    if not list(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _to_png(image: NDArray[np.uint8]) -> str:
    """Return an image as a ``data:`` URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
