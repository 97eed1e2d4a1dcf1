"""Run -> a page in the browser that looks at one's pictures: ``python scripts/demo.py RUN``."""

import argparse
import contextlib
import math
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_lit.checkpoint import find_checkpoint, hyper_parameters, load_checkpoint
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import CommandParser, import_extra
from cifar_lit.report import Answers
from cifar_lit.results import shorten
from cifar_lit.sources.picture import read_picture

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ZOOM = 8
"""Screen pixels for each pixel that the model sees."""
NUM_MISTAKES = 10
EXAMPLES = """
python scripts/demo.py lightning_logs/version_0
python scripts/demo.py lightning_logs/version_0 --port 8000 --max_upload_mb 50
python scripts/demo.py lightning_logs/version_0 --data.root pictures
"""
STYLE = "img { image-rendering: pixelated; } footer { display: none !important; }"


def look_at(model: ImageClassifier, path: str) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Look at one picture.

    Args:
        model: The model.
        path: The picture's file, of any size and mode.

    Returns:
        ``(32, 32, 3)``, uint8, what the model sees, and the probability of each class.

    Raises:
        ValueError: If it is not a picture.
    """
    with Path(path).open("rb") as file:
        pixels = read_picture(file)
    (probabilities,) = model.predict(torch.tensor(pixels).permute(2, 0, 1)[None]).tolist()
    return pixels, dict(zip(model.classes, probabilities, strict=True))


def answers_at_hand(model: ImageClassifier, source: Path, overrides: dict[str, str]) -> Answers | None:
    """Let the model look at the test images of its run, where they are at hand.

    Args:
        model: The model.
        source: Its checkpoint.
        overrides: Hyper-parameters of the data that are another's here, as ``root``.

    Returns:
        Its answers; None where there are no images, which is said.
    """
    try:
        options = hyper_parameters(load_checkpoint(source), source)[1] | overrides
        datamodule = CIFAR10DataModule(**options)
        datamodule.setup("test")  # without prepare_data: no download for this
        assert datamodule.test is not None
        if datamodule.classes != model.classes:
            raise ValueError("--data.root has other classes")
    except (ValueError, RuntimeError, OSError) as error:
        print(f"no mistakes are shown, for the test images are not at hand: {error}")
        return None
    images, labels = datamodule.test
    return Answers(model.net, images, labels, model.predict(images), model.classes)


def make_page(model: ImageClassifier, title: str, answers: Answers | None, uploads: Path) -> Any:
    """Make the page.

    Args:
        model: The model.
        title: What stands above it.
        answers: What the model says to the test images; without them no mistakes are shown.
        uploads: Where Gradio keeps what is uploaded; no other file is looked at.

    Returns:
        Gradio's ``Blocks``.
    """
    gradio = import_extra("gradio", extra="demo")

    def show(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, None, gradio.update(value=None, label="")
        try:
            _check_upload(path, uploads)
            pixels, probabilities = look_at(model, path)
        except (ValueError, OSError) as error:
            raise gradio.Error(f"This {error}.", print_exception=False) from error
        label = max(probabilities, key=lambda name: probabilities[name])
        return enlarge(pixels), probabilities, gradio.update(**mistakes_as(label, answers))

    # Uploads are deleted after about an hour.
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# {title}\nDrop a picture of any size: {', '.join(model.classes)}.")
        with gradio.Row():
            given = gradio.Image(sources=["upload", "clipboard"], label="picture")
            # The file as it is: Gradio would open it, and encode it anew.
            given.preprocess = lambda payload: payload.path if payload else None
            seen = gradio.Image(
                label="what the model sees: 32x32", interactive=False, elem_id="seen", buttons=[], format="png"
            )
            probabilities = gradio.Label(label="probabilities", num_top_classes=10, elem_id="probabilities")
        mistakes = gradio.Gallery(label="", columns=5, elem_id="mistakes", visible=answers is not None, format="png")
        given.change(show, given, [seen, probabilities, mistakes], api_name="predict", show_progress="minimal")
    return page


def _check_upload(path: str, uploads: Path) -> None:
    """Refuse the name of a file that nobody uploaded: a request may say anything."""
    if not Path(path).resolve().is_relative_to(uploads.resolve()):
        raise ValueError("is not a picture that was uploaded")


def mistakes_as(label: str, answers: Answers | None) -> dict[str, Any]:
    """Find the test images that a model takes for a class by mistake, the surest first.

    Args:
        label: The class's name.
        answers: What the model says to the test images.

    Returns:
        ``value``, pictures with what they are, and ``label``, a title.
    """
    if answers is None:
        return {"value": None, "label": ""}
    places = answers.mistakes_as(answers.classes.index(label))[:NUM_MISTAKES]
    pictures = [
        (enlarge(answers.images[place].permute(1, 2, 0).numpy()), "{0}, {2:.2f}".format(*answers.names(place)))
        for place in places
    ]
    return {"value": pictures, "label": f"test images that it takes for {label}, and what they are"}


def enlarge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat each pixel, so that a browser shows it as a square."""
    return pixels.repeat(ZOOM, 0).repeat(ZOOM, 1)


@contextlib.contextmanager
def serving(page: Any, *, host: str, port: int | None, max_upload_mb: float) -> Iterator[str]:
    """Serve a page.

    Args:
        page: Gradio's ``Blocks``.
        host: The address that it listens on.
        port: The port; None for the first free one from 7860 on.
        max_upload_mb: The largest picture.

    Yields:
        The page's URL.

    Raises:
        ValueError: If it cannot listen there.
    """
    gradio = import_extra("gradio", extra="demo")
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none is fetched
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(max_upload_mb * 2**20),
            share=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            theme=theme,
            css=STYLE,
        )
    except OSError as error:
        taken = f"--host is {host}, --port is {port or 'any from 7860 to 7959'}"
        raise ValueError(f"{taken}: nothing can be served there; give another") from error
    try:
        yield str(url)
    finally:
        page.close(verbose=False)


def main(args: Sequence[str]) -> int:
    """Run the command, until it is stopped.

    Args:
        args: A run's folder or a checkpoint, and options.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If there is no model, or a package is missing, or the address cannot be had.
        SystemExit: If a signal ends it.
    """
    options = _parse(args)
    # Nothing is sent anywhere, and what is uploaded stays in a folder that is removed at the end.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    source = find_checkpoint(Path(options.run))
    with tempfile.TemporaryDirectory(prefix="cifar_lit") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        import_extra("gradio", extra="demo")
        model = ImageClassifier.from_run(source)
        overrides = {"root": options.root} if options.root else {}
        page = make_page(model, shorten(options.run), answers_at_hand(model, source, overrides), Path(uploads))
        with serving(page, host=options.host, port=options.port, max_upload_mb=options.max_upload_mb) as url:
            if options.host not in LOOPBACK:
                print(f"--host {options.host}: whoever reaches this machine can use the page")
            print(f"{url}  (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    return 0


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        usage="python scripts/demo.py RUN_OR_CHECKPOINT [options]",
        description="Serve a page on this machine where one drops a picture and sees what the model sees in it.",
        examples=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860 on)")
    parser.add_argument("--max_upload_mb", type=float, default=20, help="largest picture in MB (default: 20)")
    parser.add_argument("--data.root", dest="root", help="where the test images lie, if not where they were")
    options = parser.parse_args(args)
    if not 0 < options.max_upload_mb < math.inf:
        raise ValueError(f"--max_upload_mb is {options.max_upload_mb}: give a number above 0")
    if options.port is not None and not 0 < options.port < 2**16:
        raise ValueError(f"--port is {options.port}: give a number from 1 to {2**16 - 1}")
    try:
        socket.getaddrinfo(options.host, options.port)
    except OSError as error:
        raise ValueError(f"--host is {options.host}: there is no such address ({error})") from error
    return options
