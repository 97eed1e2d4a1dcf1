"""Checkpoint and picture files -> what the model sees in them: ``python scripts/predict.py RUN PATH...``."""

import csv
import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cifar_lit.module import ImageClassifier
from cifar_lit.parser import CommandParser, reader_may_leave
from cifar_lit.sources.images import MAX_BYTES, list_files, read_files
from cifar_lit.sources.picture import read_picture

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
BATCH_SIZE = 256
"""Pictures that are decoded and looked at together."""
FORMATS = ("table", "csv", "json", "jsonl")
EXAMPLES = """
python scripts/predict.py lightning_logs/version_0 cat.jpg dog.png
python scripts/predict.py lightning_logs/version_0 pictures/ 'more/*.webp'
python scripts/predict.py lightning_logs/version_0 archive.zip --format csv
python scripts/predict.py lightning_logs/version_0 - < cat.jpg
"""


@dataclass(frozen=True)
class Place:
    """Where a picture is.

    Attributes:
        root: A folder or archive; None for a single file and for standard input.
        name: Its name in the root; a path of its own where there is none.
    """

    root: Path | None
    name: str

    def __str__(self) -> str:
        return self.name if self.root is None else (self.root / self.name).as_posix()


@dataclass(frozen=True)
class Prediction:
    """What the model sees in one picture.

    Attributes:
        path: The picture.
        top: The classes that it holds for likely, the likeliest first, each with its probability.
    """

    path: str
    top: list[tuple[str, float]]


def find_pictures(paths: Sequence[str]) -> list[Place]:
    """Find the pictures that are asked for.

    Args:
        paths: Files, folders (with all below them), globs, archives, or ``-`` for standard input.

    Returns:
        Where they are, sorted within each folder and archive.

    Raises:
        ValueError: If one of the paths leads to none.
    """
    places = []
    for path in paths:
        try:
            found = _find(path)
        except ValueError as error:  # of an archive
            raise ValueError(str(error).removeprefix("--data.root ")) from error
        if not found:
            raise ValueError(f"{path}: there is no such picture, and no folder or archive with one")
        places += found
    return places


def _find(path: str) -> list[Place]:
    file = Path(path)
    if path == "-" or (file.is_file() and not path.lower().endswith(ARCHIVES)):
        return [Place(None, path)]
    if file.exists():
        Image.init()
        names = [name for name in set(list_files(file)) if Path(name).suffix.lower() in Image.EXTENSION]
        hidden = [name for name in names if any(part.startswith((".", "__")) for part in Path(name).parts)]
        return [Place(file, name) for name in sorted(set(names) - set(hidden))]
    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (a Path takes no absolute pattern)
    return [place for match in matches for place in _find(match)]


def predict(
    model: ImageClassifier,
    places: Sequence[Place],
    *,
    top_k: int = 1,
    on_broken: Callable[[str, str], object] | None = None,
) -> Iterator[Prediction]:
    """Look at pictures, decoded on all cores and batch by batch, so that any number of them fits into memory.

    Args:
        model: The model.
        places: Where the pictures are.
        top_k: How many classes are named for each.
        on_broken: Called with path and reason for a picture that cannot be read, which is left out.

    Yields:
        A prediction for each picture.

    Raises:
        ValueError: If a picture cannot be read and ``on_broken`` is None.
    """

    def decode(item: tuple[str, bytes | str]) -> Any:
        _, content = item
        try:
            if isinstance(content, bytes):
                return read_picture(io.BytesIO(content))
            with Path(content).open("rb") as file:
                return read_picture(file)
        except (ValueError, OSError) as error:
            return error

    top_k = min(top_k, len(model.classes))
    items = _items(places)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(itertools.islice(items, BATCH_SIZE)):
            decoded = list(zip((path for path, _ in batch), pool.map(decode, batch), strict=True))
            for path, picture in decoded:
                if isinstance(picture, Exception):
                    if on_broken is None:
                        raise ValueError(f"{path} {picture}") from picture
                    on_broken(path, str(picture))
            good = [(path, picture) for path, picture in decoded if not isinstance(picture, Exception)]
            if not good:
                continue
            pictures = torch.from_numpy(np.stack([picture for _, picture in good])).permute(0, 3, 1, 2)
            values, labels = model.predict(pictures).topk(top_k)
            for (path, _), some_values, some_labels in zip(good, values.tolist(), labels.tolist(), strict=True):
                names = [model.classes[label] for label in some_labels]
                yield Prediction(path, list(zip(names, some_values, strict=True)))


def _items(places: Sequence[Place]) -> Iterator[tuple[str, bytes | str]]:
    """Give each picture's path and its content, or the file that it can be read from."""
    for root, group in itertools.groupby(places, key=lambda place: place.root):
        members = list(group)
        if root is not None and root.is_file():
            names = {place.name for place in members}
            yield from (((root / name).as_posix(), content) for name, content in read_files(root, names))
            continue
        for place in members:
            yield str(place), sys.stdin.buffer.read(MAX_BYTES) if place.name == "-" and root is None else str(place)


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: A run's folder or a checkpoint, paths of pictures, options.

    Returns:
        The exit code: 1 where a picture could not be read.

    Raises:
        ValueError: If there is no model or no picture.
    """
    parser = CommandParser(
        usage="python scripts/predict.py RUN_OR_CHECKPOINT PATH... [options]",
        description="Say what a trained model sees in pictures of any size and kind.",
        examples=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file, folder, glob, archive, or - for standard input")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how it is printed (default: table)")
    parser.add_argument("--top_k", type=int, default=3, help="classes that are named for each picture (default: 3)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU where there is one)")
    options = parser.parse_args(args)
    if options.top_k < 1:
        raise ValueError(f"--top_k is {options.top_k}: give 1 or more")
    model = ImageClassifier.from_run(options.run)
    try:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model.to(torch.device(options.device) if options.device != "auto" else accelerator or torch.device("cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {options.device}, which cannot be had here: {error}") from error
    places = find_pictures(options.paths)
    broken: list[str] = []
    # No bar where the output is no terminal, or where the table itself shows that it goes on.
    with tqdm(total=len(places), desc="Predicting", disable=None if len(places) > BATCH_SIZE else True) as bar:

        def on_broken(path: str, reason: str) -> None:
            broken.append(path)
            bar.update()
            with bar.external_write_mode(file=sys.stderr):
                print(f"error: {path} {reason}", file=sys.stderr)

        def counted() -> Iterator[Prediction]:
            for prediction in predict(model, places, top_k=options.top_k, on_broken=on_broken):
                bar.update()
                yield prediction

        with reader_may_leave():
            write(counted(), options.format, sys.stdout)
    return 1 if broken else 0


def write(predictions: Iterator[Prediction], style: str, file: IO[str]) -> None:
    """Print predictions.

    Args:
        predictions: What is printed, as it comes.
        style: ``table`` for people; ``csv``, ``jsonl`` (a line each) or ``json`` (a list) for programs.
        file: Where.
    """
    if style == "csv":
        table = csv.writer(file)
        for number, prediction in enumerate(predictions):
            if number == 0:
                ranks = range(1, len(prediction.top) + 1)
                table.writerow(["path", *(f"{what}_{rank}" for rank in ranks for what in ("label", "probability"))])
            table.writerow([prediction.path, *(part for name, p in prediction.top for part in (name, f"{p:.6f}"))])
    elif style == "table":
        for prediction in predictions:
            path = prediction.path if len(prediction.path) <= 36 else "..." + prediction.path[-33:]
            print(f"{path:<36}  " + "  ".join(f"{name[:16]} {p:.3f}" for name, p in prediction.top), file=file)
    else:
        lines = (
            json.dumps({"path": x.path, "top": [{"label": name, "probability": round(p, 6)} for name, p in x.top]})
            for x in predictions
        )
        if style == "jsonl":
            file.writelines(line + "\n" for line in lines)
        else:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
