"""Entries of the record page: files of JSON lines, which are read as data, and the rules that they are held to."""

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.callbacks import Timer

from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.trust import check_config_of_run
from cifar_lit.commands.trial import Row, check
from cifar_lit.data.augment import size_of_epoch
from cifar_lit.data.split import Split
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.networks.finding import is_ours
from cifar_lit.schema import leaves, read_bytes

MIN_SEEDS = 3
NAME = "[a-z0-9][a-z0-9_-]{0,39}"
"""Of an entry, and of its file."""
FIXED: dict[str, Any] = {
    **{"trainer.accelerator": "cpu", "trainer.devices": "auto", "trainer.num_nodes": 1, "trainer.strategy": "auto"},
    **{"trainer.max_steps": -1, "trainer.max_time": None, "trainer.fast_dev_run": False},
    **{"trainer.limit_val_batches": 0, "trainer.limit_test_batches": None, "checkpoint.monitor": "Accuracy/val"},
    **{"trainer.logger": False, "trainer.enable_checkpointing": True, "report": False},
    **{"model.weights": None, "model.freeze": "none", "data.image_size": 32, "data.duplicates": "keep"},
}
"""Options of ``fit`` that all entries have: whole epochs on a CPU, all test images once, with the last weights."""
HEAD = {"date": str, "settings": dict, "data": str, "machine": str, "environment": dict, "versions": dict}
ROW = {
    **{"seed": int, "accuracy": float, "accuracy_without_tta": float, "seconds": float, "train_seconds": float},
    **{"multiplications": int, "epochs": int, "num_train": int, "num_test": int, "gflops": float},
}
"""Names and types of the first line, and of the line of each seed."""


class Images(NamedTuple):
    """A class of entries: its images."""

    title: str
    num_train: int
    num_test: int


OFFICIAL = Images("official", 50_000, 10_000)
KNOWN = {
    "dbfe801d2f0e3fb46059bbfecce3c65cf8c3e3aadf9b084914c0fa1d7e31ccbf": Images("JPEG", 50_000, 5_000),
    "37ec35366110c909bbd578ed430eb8fad33aca5d632e90a29f5b7c3eca6132f1": Images("synthetic", 25_000, 5_000),
}
"""Images by their checksum. Those of the source cifar10 are official, too: ``fit`` verifies the MD5 of the archive."""


@dataclass(frozen=True)
class Entry:
    """An entry: the first line, with settings, images and machine, and a row for each seed."""

    path: Path
    head: dict[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Entry":
        """Read a file; one that is damaged is a ``UserError`` with the line."""
        try:
            lines = read_bytes(path).splitlines() or [b""]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        head, *rows = (_parse(line, ROW if i else HEAD, f"{path}:{i + 1}") for i, line in enumerate(lines))
        return cls(path, head, rows)

    @property
    def images(self) -> Images | None:
        """The class of the entry; None for images that are not those of CIFAR-10."""
        is_official = _get(self.head["settings"], "data.source") == "cifar10"
        return KNOWN.get(self.head["data"], OFFICIAL if is_official else None)


def _parse(line: bytes, fields: Mapping[str, type], place: str) -> dict[str, Any]:
    """Parse a line that must have these fields, of these types; numbers are finite and not negative."""
    try:
        part = json.loads(line)
        list(leaves(part))  # not nested too deeply
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is damaged, {error}") from error
    if not isinstance(part, dict) or part.keys() != fields.keys():
        raise UserError(f"{place}: must have the fields {', '.join(fields)}, and no others")
    for name, kind in fields.items():
        value = part[name]
        is_valid = type(value) in (int, kind) and 0 <= value < 1e18 if kind in (int, float) else type(value) is kind
        if not is_valid:
            raise UserError(f"{place}: {name} is {str(value)[:60]}: must be a {kind.__name__}")
    return part


def checksum(train: Split, test: Split) -> str:
    """Return the SHA-256 of decoded images and labels, whatever their order.

    What is hashed are the sorted SHA-256 of all training images, and then those of all test images: each of 3,072 bytes
    (row by row, RGB) and one more for the label, the place of the class in the alphabet.
    """
    total = hashlib.sha256()
    for images, labels in (train, test):
        pairs = zip(images.numpy(), labels.tolist(), strict=True)
        digests = sorted(hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in pairs)
        total.update(b"".join(digests))
    return total.hexdigest()


def settings_of(cli: FitCLI) -> dict[str, Any]:
    """Return all options of a fit, but for those that differ between machines and seeds."""
    settings: dict[str, Any] = yaml.safe_load(cli.dump())
    del settings["seed_everything"], settings["trainer"]["default_root_dir"]
    for name in ("root", "cache_dir", "mirror"):
        del settings["data"][name]
    return settings


def _get(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = settings.get(part, "missing") if isinstance(settings, dict) else "missing"
    return settings


def problems(entry: Entry) -> Iterator[tuple[int, str]]:
    """Yield each rule that an entry breaks, with the line."""
    cli, of_head = check_head(entry)
    yield from ((1, text) for text in of_head)
    if len(entry.rows) < MIN_SEEDS:
        yield 1, f"there are {len(entry.rows)} seeds: at least {MIN_SEEDS} are needed"
    if cli is None:
        return
    counts: dict[tuple[int, int], int | None] = {}
    for seed, row in enumerate(entry.rows):
        found = list(_row_problems(row, seed, entry.images, cli))
        if not found:  # or the numbers may be too large to count with
            key = row["epochs"], row["num_train"]
            if key not in counts:
                counts[key] = count(cli, *key)
            if row["multiplications"] != counts[key]:
                found = [f"multiplications is {row['multiplications']}: these settings come to {counts[key]}"]
        yield from ((seed + 2, text) for text in found)


def check_head(entry: Entry) -> tuple[FitCLI | None, list[str]]:
    """Return the model and options of an entry, if they can be built, and each rule that its first line breaks."""
    found = list(_head_problems(entry))
    try:
        return _build(entry.head["settings"]), found
    except (ValueError, TypeError, KeyError) as error:  # a UserError, too; jsonargparse takes null for any type
        return None, [*found, f"settings: {error}"]


def _head_problems(entry: Entry) -> Iterator[str]:
    settings = entry.head["settings"]
    if entry.images is None:
        yield f"data is {entry.head['data']:.80}, which is not the checksum of CIFAR-10"
    for name, value in FIXED.items():
        if _get(settings, name) != value:
            yield f"settings: {name} is {_get(settings, name)}: must be {value}"
    if any(value and name in ("ckpt_path", "weights") for name, value in leaves(settings)):
        yield "settings: ckpt_path or weights is given: each seed trains from its own initial weights"
    if not is_ours(net := str(_get(settings, "model.net.class_path"))):
        yield f"settings: model.net is {net}: must be a network of this project; add yours to cifar_lit/networks"
    max_epochs = _get(settings, "trainer.max_epochs")
    if not re.fullmatch(NAME, entry.path.stem):
        yield f"the file is {entry.path.name!r:.80}: its name must be of the letters a to z, digits, _ and -"
    if not (type(max_epochs) is int and 0 < max_epochs < 10_000):
        yield f"settings: trainer.max_epochs is {max_epochs}: must be a number of epochs"


def _build(settings: dict[str, Any]) -> FitCLI:
    """Build the model of an entry without its images; what would import or read anything else is a ``UserError``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        try:
            check_config_of_run(file, ())
            other_images = ["--data.source=synthetic", "--data.dataset=null"]  # of ten classes, too, and without files
            cli = check(["--config", str(file), *other_images], own=())
            _check_built(cli, settings)
            return cli
        except UserError as error:
            text = str(error).replace(f"{file} does", "they do").replace(str(file), "they")
            raise UserError(text.partition(". Give --trust_run")[0]) from error


def _check_built(cli: FitCLI, settings: dict[str, Any]) -> None:
    """Refuse what other spellings of the settings come to, such as a key with dots or a callback that ends a fit."""
    read = settings_of(cli)
    for name, value in FIXED.items():
        if _get(settings, name) == value != _get(read, name):
            raise UserError(f"{name} is {_get(read, name)} in another spelling: must be {value}")
    callbacks = cli.config_init["trainer"]["callbacks"] or ()
    if any(isinstance(one, Timer) for one in (callbacks if isinstance(callbacks, list) else [callbacks])):
        raise UserError("trainer.callbacks has a Timer, and by a time limit the work would depend on the machine")


def _row_problems(row: Row, seed: int, images: Images | None, cli: FitCLI) -> Iterator[str]:
    num_test, max_epochs = row["num_test"], cli.config["trainer"]["max_epochs"]
    if row["seed"] != seed:
        yield f"seed is {row['seed']}: must be {seed}, the next one"
    for name in ("accuracy", "accuracy_without_tta"):
        num_correct = row[name] * num_test
        if row[name] > 1 or abs(num_correct - round(num_correct)) > 0.01:
            yield f"{name} is {row[name]}: must be the share of a whole number of {num_test} test images"
    if cli.model.hparams["tta"] == "none" and row["accuracy"] != row["accuracy_without_tta"]:
        yield f"accuracy is {row['accuracy']}: must be accuracy_without_tta, because model.tta is none"
    if not 0 < row["train_seconds"] < row["seconds"]:
        yield f"seconds is {row['seconds']}: must be more than train_seconds, {row['train_seconds']}"
    if row["gflops"] == 0:
        yield "gflops is 0: must be the rate of the machine"
    if images and num_test != images.num_test:
        yield f"num_test is {num_test}: must be {images.num_test}"
    if images and not 0 < row["num_train"] <= images.num_train:
        yield f"num_train is {row['num_train']}: must be from 1 to {images.num_train}"
    if not 0 < row["epochs"] <= (max_epochs or 0):
        yield f"epochs is {row['epochs']}: must be from 1 to {max_epochs}"


def count(cli: FitCLI, num_epochs: int, num_train: int) -> int | None:
    """Count the multiplications of a training with these settings."""
    trainer, data = cli.config["trainer"], cli.datamodule.hparams
    num_batches, limit = -(-num_train // data["batch_size"]), trainer["limit_train_batches"]
    if limit is not None:
        num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    images: Counter[tuple[int, int]] = Counter()
    for epoch in range(num_epochs):
        size = size_of_epoch(data["image_sizes"] or [data["image_size"]], epoch, trainer["max_epochs"])
        images[epoch, size] += min(num_train, num_batches * data["batch_size"])
    num_steps = num_epochs * -(-num_batches // (trainer["accumulate_grad_batches"] or 1))
    return count_multiplications(cli.model, images, num_steps)
