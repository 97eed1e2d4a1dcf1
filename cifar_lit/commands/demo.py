"""``cifar-lit demo RUN``: classify images in the browser."""

import argparse
import contextlib
import math
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.commands.serving import LOOPBACK, OwnHosts, own_names, uploads_folder
from cifar_lit.data.decoding import read_image
from cifar_lit.errors import UserError, import_extra, require
from cifar_lit.evaluation.card import plain_markdown
from cifar_lit.evaluation.plots import confident_errors
from cifar_lit.evaluation.summary import headline, percent
from cifar_lit.files import printable
from cifar_lit.metrics import Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.run import Run

SHOWN_SIZE = 256
"""Screen pixels of an image, at most."""
NUM_ERRORS = 10
NUM_EXAMPLES = 10
EXAMPLES = """
cifar-lit demo lightning_logs/version_0
cifar-lit demo lightning_logs/version_0 --port 8000 --max_upload_mb 50
cifar-lit demo lightning_logs/version_0 --data.root pictures
"""
STYLE = """
img { image-rendering: pixelated; } footer { display: none !important; }
#errors .grid-container { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)) !important; }
#errors .grid-wrap { padding-top: 2.2rem; }
#picture img { object-fit: contain; width: 100%; height: 100%; }
"""

Tested = tuple[Predictions, Tensor]
"""Predictions for the test images, and the images, ``(N, size, size, 3)``, uint8."""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    # Nothing is sent anywhere, so no proxy is needed: Gradio would ask it for the page itself.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}
    with naming_options(parser.names), uploads_folder() as uploads:
        _check(options)
        run = Run(options.run, trust=options.trust)
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        import_extra("gradio", extra="demo")
        model, tested = run.model(), None
        try:
            with naming_options(parser.names):
                tested = predict_test_images(run, model, {"root": options.root} if options.root else {})
        except (UserError, OSError) as error:
            print(f"no errors are shown, because the test images are missing: {printable(str(error))}")
        page = make_page(model, about(model, run, tested), tested, uploads)
        url = launch(page, options)
        try:
            if options.host not in LOOPBACK:
                print(f"--host {options.host}: everybody who can reach this machine can use the page")
            print(f"{url}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "demo", "RUN", "Serve a page on this machine that classifies the pictures that are dropped on it.", EXAMPLES
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder (its best checkpoint), a checkpoint or an export")
    parser.add_trust()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    parser.add_argument("--max_upload_mb", type=float, default=20, help="largest picture in MB (default: 20)")
    parser.add_argument("--data.root", dest="root", help="where the test images are, if not where they were")
    return parser


def _check(options: argparse.Namespace) -> None:
    require("max_upload_mb", options.max_upload_mb, 0 < options.max_upload_mb < math.inf, "above 0")
    require("port", options.port, options.port is None or 0 < options.port < 2**16, f"from 1 to {2**16 - 1}")
    try:
        socket.getaddrinfo(options.host, options.port)
    except (OSError, UnicodeError) as error:
        raise UserError(f"`host` is {options.host}: no such address ({error})") from error


def predict_test_images(run: Run, model: ImageClassifier, overrides: dict[str, str]) -> Tested:
    """Classify the test images of a run, whose data has other hyper-parameters here."""
    datamodule = run.datamodule(**overrides)
    datamodule.setup("test")  # without prepare_data, which downloads
    assert datamodule.test is not None
    images, labels = datamodule.test
    log_probs = model.predict(images.permute(0, 3, 1, 2)).log()
    return Predictions(log_probs, labels, torch.arange(len(labels))), images


def make_page(model: ImageClassifier, text: str, tested: Tested | None, uploads: Path) -> Any:
    """Return the page, Gradio's ``Blocks``, which reads no file outside ``uploads``; ``text`` says what the model is.

    Its examples are test images, if there are some.
    """
    gradio, name = import_extra("gradio", extra="demo"), type(model.net).__name__
    # Uploads are deleted after about an hour.
    with gradio.Blocks(title=f"Image classifier: {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# Image classifier: {name}\n{text}", elem_id="about", latex_delimiters=[])
        options = {"sources": ["upload", "clipboard"], "height": 300, "elem_id": "picture"}
        upload = gradio.Image(label="drop a picture of any size", **options, render=False)
        if examples := write_examples(model.classes, tested, uploads):
            gradio.Examples([[str(path)] for path in examples], upload, label="test images to click")
        with gradio.Row():
            upload.render()
            seen = gradio.Image(
                label=f"what the model sees: {model.image_size}x{model.image_size} pixels",
                interactive=False,
                elem_id="seen",
                buttons=[],
                height=300,
                format="png",
            )
            probabilities = gradio.Label(label="probabilities", num_top_classes=10, elem_id="probabilities")
        errors = gradio.Gallery(visible=False, columns=10, height=260, elem_id="errors", format="png", buttons=[])
        # preprocess=False: the uploaded file unchanged, which Gradio would decode in its own way.
        upload.change(
            lambda payload: respond(payload, model, tested, uploads),
            upload,
            [seen, probabilities, errors],
            api_name="predict",
            show_progress="hidden",
            preprocess=False,
        )
    return page


def about(model: ImageClassifier, run: Run, tested: Tested | None) -> str:
    """Return what is known of the model, its accuracy and its classes, in Markdown."""
    results, text = None, ""
    with contextlib.suppress(UserError):  # of a damaged results.json
        results = run.own_results
    if results is not None:
        text = headline(results)
    elif tested is not None:
        correct = tested[0].correct
        text = f"It classifies {percent(float(correct.double().mean()))} of {len(correct):,} test images correctly."
    paragraphs = (text, f"Classes: {', '.join(model.classes)}")
    return "\n\n".join(printable(plain_markdown(paragraph)) for paragraph in paragraphs if paragraph)


def write_examples(classes: Sequence[str], tested: Tested | None, folder: Path) -> list[Path]:
    """Write a test image of each of the first classes into a folder."""
    if tested is None:
        return []
    (predictions, images), paths = tested, []
    for label in range(min(NUM_EXAMPLES, len(classes))):
        for row in (predictions.labels == label).nonzero().flatten().tolist()[:1]:
            paths.append(folder / f"example_{label}.png")
            Image.fromarray(images[predictions.index[row]].numpy()).save(paths[-1])
    return paths


def respond(payload: Any, model: ImageClassifier, tested: Tested | None, uploads: Path) -> tuple[Any, ...]:
    """Return for what was uploaded the model's input, its probabilities, and the errors that are predicted the same."""
    gradio = import_extra("gradio", extra="demo")
    if payload is None:
        return None, None, gradio.update(value=None, label="", visible=False)
    try:
        pixels, probabilities = classify(model, _uploaded_file(payload, uploads))
    except (UserError, OSError) as error:
        raise gradio.Error(f"This {error}.", print_exception=False) from error
    label = max(probabilities, key=lambda name: probabilities[name])
    errors = errors_as(label, model.classes, tested)
    return enlarge(pixels), probabilities, gradio.update(**errors, visible=bool(errors["value"]))


def _uploaded_file(payload: Any, uploads: Path) -> Path:
    """Return the file that was uploaded; a request may name any other."""
    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(uploads.resolve()):
        raise UserError("is not a picture that was uploaded")
    return Path(path)


def classify(model: ImageClassifier, path: Path) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Return the model's input for an image file, ``(size, size, 3)``, uint8, and the probability of each class."""
    with path.open("rb") as file:
        pixels = read_image(file, model.image_size, model.hparams["resize"])
    (probabilities,) = model.predict(torch.tensor(pixels).permute(2, 0, 1)[None]).tolist()
    return pixels, dict(zip(model.classes, probabilities, strict=True))


def errors_as(label: str, classes: Sequence[str], tested: Tested | None) -> dict[str, Any]:
    """Return the most confident errors that are predicted as a class: ``value`` and ``label`` of a gallery."""
    if tested is None:
        return {"value": None, "label": ""}
    errors = confident_errors(*tested, classes, limit=NUM_ERRORS, predicted=classes.index(label))
    images = [(enlarge(image), f"{true}, {confidence:.2f}") for image, true, _, confidence in errors]
    return {"value": images, "label": f"test images wrongly predicted as {label}"}


def enlarge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat each pixel, so that a browser shows it as a square."""
    zoom = SHOWN_SIZE // len(pixels)
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def launch(page: Any, options: argparse.Namespace) -> str:
    """Serve a page, Gradio's ``Blocks``, and return its URL."""
    gradio, middleware = (import_extra(name, extra="demo") for name in ("gradio", "starlette.middleware"))
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # without downloads
    try:
        _, url, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            max_file_size=max(1, int(options.max_upload_mb * 2**20)),
            share=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            theme=theme,
            css=STYLE,
            app_kwargs={"middleware": [middleware.Middleware(OwnHosts, names=own_names(options.host))]},
        )
    except OSError as error:
        taken = f"`host` is {options.host}, `port` is {options.port or 'any from 7860 to 7959'}"
        raise UserError(f"{taken}: nothing can be served there; give another") from error
    return str(url)
