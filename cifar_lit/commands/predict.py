"""``cifar-lit predict RUN PATH...``: classify images of your own."""

import csv
import glob
import io
import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.data.archives import read_each
from cifar_lit.data.decoding import Resize, read_image
from cifar_lit.data.listing import is_archive, list_images, say
from cifar_lit.data.unpacking import MAX_BYTES
from cifar_lit.errors import UserError, require
from cifar_lit.files import printable
from cifar_lit.module import ImageClassifier
from cifar_lit.run import Run

BATCH_SIZE = 256
"""Images that are decoded and classified together."""
EXAMPLES = """
cifar-lit predict lightning_logs/version_0 cat.jpg dog.png
cifar-lit predict lightning_logs/version_0 pictures/ 'more/*.webp'
cifar-lit predict lightning_logs/version_0 archive.zip --format csv
cifar-lit predict lightning_logs/version_0 - < cat.jpg
"""
Images = tuple[Path | None, dict[str, int]]
"""An archive and the names of images in it, or None and names of files, where ``-`` is standard input.

With each name how often it occurs there: in a tar archive a later file may replace one of the same name.
"""
Content = tuple[str, bytes | Path | UserError]
"""Name of an image, and its content, the file that it can be read from, or what is wrong with it."""
Prediction = tuple[str, list[tuple[str, float]]]
"""The name of an image and its most probable classes, the most probable first, each with its probability."""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    with naming_options(parser.names):
        require("top_k", options.top_k, options.top_k >= 1, "at least 1")
        model = Run(options.run, trust=options.trust).model()
        _move(model, options.device)
        images = find_images(options.paths)
    num_images, num_broken = sum(len(names) for _, names in images), 0
    # No bar where the output is not a terminal, or where the table itself shows the progress.
    with tqdm(total=num_images, desc="Predicting", disable=None if num_images > BATCH_SIZE else True) as bar:

        def predictions() -> Iterator[Prediction]:
            nonlocal num_broken
            for name, top in predict(model, images, top_k=options.top_k):
                bar.update()
                if not isinstance(top, Exception):
                    yield name, top
                    continue
                num_broken += 1
                with bar.external_write_mode(file=sys.stderr):
                    print(f"error: {printable(f'{name} {top}')}", file=sys.stderr)

        with reader_may_leave():
            if isinstance(sys.stdout, io.TextIOWrapper) and options.format != "table" and not sys.stdout.isatty():
                # A file is the same bytes everywhere; a name that is no text keeps its bytes.
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
            write(predictions(), options.format, sys.stdout)
    return 1 if num_broken else 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "predict", "RUN PATH...", "Classify images of any size and format with a trained model.", EXAMPLES
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder (its best checkpoint), a checkpoint or an export")
    parser.add_trust()
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file, folder, glob, archive, or - for standard input")
    formats = ("table", "csv", "json", "jsonl")
    parser.add_argument("--format", choices=formats, default="table", help="format of the output (default: table)")
    parser.add_argument("--top_k", type=int, default=3, help="classes that are shown for each image (default: 3)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    return parser


def _move(model: ImageClassifier, device: str) -> None:
    try:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model.to(torch.device(device) if device != "auto" else accelerator or torch.device("cpu"))
        model.mean.cpu()  # the meta device holds no values
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is unknown or missing
        raise UserError(f"`device` is {device}: not available here ({error})") from error


def find_images(paths: Sequence[str]) -> list[Images]:
    """Return the images at files, folders (with all below them), globs and archives, sorted in each of them.

    One that is found several times, as by ``**`` in its folder and by its own name, is returned once.
    """
    images: list[Images] = []
    seen: set[tuple[Path | None, Path]] = set()
    for path in paths:
        found = _find(path)
        if not any(names for _, names in found):
            raise UserError(f"{path}: no such image, and no folder or archive with one")
        for archive, names in found:
            new = {name: times for name, times in names.items() if (archive, Path(name)) not in seen}
            seen.update((archive, Path(name)) for name in new)
            images.append((archive, new))
    return images


def _find(path: str) -> list[Images]:
    file, is_there = Path(path), os.path.exists(path)  # noqa: PTH110 (a Path raises for a name that is too long)
    is_dangling = not is_there and os.path.islink(path)  # noqa: PTH114
    if path == "-" or is_dangling or (is_there and not file.is_dir() and not is_archive(file)):
        return [(None, {path: 1})]
    if not is_there:
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (a Path takes no absolute pattern)
        return [images for match in matches for images in _find(match)]
    found = list_images(file)
    if passed_over := found.describe():
        say(passed_over)
    if file.is_dir():
        return [(None, {(file / name).as_posix(): 1 for name in found.images})]
    times = Counter(found.names)
    return [(file, {name: times[name] for name in found.images})]


def predict(
    model: ImageClassifier, images: Iterable[Images], *, top_k: int = 1
) -> Iterator[tuple[str, list[tuple[str, float]] | Exception]]:
    """Classify images, decoded on all cores and batch by batch, so that any number of them fits into memory.

    Yields for each image its name and the most probable classes, or the error if it cannot be read.
    """
    top_k = min(top_k, len(model.classes))
    decode = partial(_decode, size=model.image_size, resize=model.hparams["resize"])
    contents = itertools.chain.from_iterable(itertools.starmap(_read, images))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _batches(contents):
            names, decoded = [], []
            for (name, _), image in zip(batch, pool.map(decode, batch), strict=True):
                if isinstance(image, Exception):
                    yield name, image
                else:
                    names.append(name)
                    decoded.append(image)
            batch.clear()  # before the next files are read
            if decoded:
                pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
                probabilities, labels = model.predict(pixels).topk(top_k)
                for name, row, columns in zip(names, probabilities.tolist(), labels.tolist(), strict=True):
                    yield name, [(model.classes[i], p) for i, p in zip(columns, row, strict=True)]


def _read(archive: Path | None, names: dict[str, int]) -> Iterator[Content]:
    """Yield each image's name, and its content, the file that it can be read from, or what is wrong with it.

    Of a name that occurs several times in an archive the last file counts, as in a training.
    """
    if archive is not None:
        left = dict(names)
        for name, content in read_each(archive, names):
            left[name] = left.get(name, 1) - 1
            if not left[name] or name not in names:  # without a name: what is wrong with the archive
                yield (archive / name).as_posix(), content
        return
    for name in names:
        if os.path.islink(name) and not os.path.exists(name):  # noqa: PTH110, PTH114
            yield name, UserError("is a link to nothing")
        else:
            yield name, _standard_input() if name == "-" else Path(name)


def _standard_input() -> bytes | UserError:
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    return content if len(content) <= MAX_BYTES else UserError(f"has more than {MAX_BYTES:,} bytes")


def _batches(contents: Iterator[Content]) -> Iterator[list[Content]]:
    """Gather images, at most ``BATCH_SIZE``, and fewer large files of an archive, which are in memory together."""
    batch: list[Content] = []
    num_bytes = 0
    for name, content in contents:
        batch.append((name, content))
        num_bytes += len(content) if isinstance(content, bytes) else 0
        if len(batch) == BATCH_SIZE or num_bytes >= MAX_BYTES:
            yield batch
            batch, num_bytes = [], 0
    yield batch


def _decode(item: Content, *, size: int, resize: Resize) -> NDArray[np.uint8] | UserError:
    _, content = item
    try:
        if isinstance(content, UserError):
            raise content
        return read_image(io.BytesIO(content) if isinstance(content, bytes) else content, size, resize)
    except UserError as error:
        return error


def _is_formula(text: str) -> bool:
    """Return whether a spreadsheet would compute a cell; a number is none, and neither is ``-``, standard input."""
    is_number = re.fullmatch(r"-|[+-]?\d+(\.\d+)?", text) is not None
    return not is_number and text.startswith(tuple("=+-@\t\r\n\uff0b\uff0d\uff1d\uff20"))


def write(predictions: Iterable[Prediction], style: str, file: IO[str]) -> None:
    """Print predictions as they come: as a ``table`` for people, or as ``csv``, ``jsonl`` or ``json``.

    Lines of CSV end in a line feed. No cell of it is a formula for a spreadsheet: a path gets ``./`` in front, which
    names the same file, and a label an apostrophe (OWASP, "CSV Injection").
    """
    if style == "table":
        for name, top in predictions:
            name = printable(name)
            short = name if len(name) <= 36 else "..." + name[-33:]
            print(f"{short:<36}  " + "  ".join(f"{printable(label)[:16]} {p:.3f}" for label, p in top), file=file)
    elif style == "csv":
        table, shown = csv.writer(file, lineterminator="\n"), printable if file.isatty() else str
        for number, (name, top) in enumerate(predictions):
            row = {"path": shown("./" * _is_formula(name) + name)}
            for rank, (label, p) in enumerate(top, start=1):
                row |= {f"label_{rank}": shown("'" * _is_formula(label) + label), f"probability_{rank}": f"{p:.6f}"}
            if number == 0:
                table.writerow(row)
            table.writerow(row.values())
    else:
        lines = (
            json.dumps({"path": name, "top": [{"label": label, "probability": round(p, 6)} for label, p in top]})
            for name, top in predictions
        )
        if style == "jsonl":
            file.writelines(line + "\n" for line in lines)
        else:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
