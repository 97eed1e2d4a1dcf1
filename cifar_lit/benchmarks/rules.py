"""The rules of the record page, by which entries are checked."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer

from cifar_lit.benchmarks.entries import NAME, Entry, Images, get_option, settings_of
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.trust import check_config_of_run
from cifar_lit.commands.trial import Row, check
from cifar_lit.data.augment import size_of_epoch
from cifar_lit.data.loader import num_trained
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.networks.finding import is_ours
from cifar_lit.schema import leaves

MIN_SEEDS = 3
FIXED: dict[str, Any] = {
    **{"trainer.accelerator": "cpu", "trainer.devices": "auto", "trainer.num_nodes": 1, "trainer.strategy": "auto"},
    **{"trainer.max_steps": -1, "trainer.max_time": None, "trainer.fast_dev_run": False},
    **{"trainer.limit_val_batches": 0, "trainer.limit_test_batches": None, "checkpoint.monitor": "Accuracy/val"},
    **{"trainer.logger": False, "trainer.enable_checkpointing": True, "report": False},
    **{"model.weights": None, "model.freeze": "none", "data.image_size": 32, "data.duplicates": "keep"},
}
"""Options of ``fit`` that all entries have: whole epochs on a CPU, all test images once, with the last weights."""
REFUSED_CALLBACKS = {
    Timer: "by a time limit the work would depend on the machine",
    GradientAccumulationScheduler: "the steps of such a training are not counted",
}


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
        if row["num_train"] != entry.rows[0]["num_train"]:
            found.append(f"num_train is {row['num_train']}: must be {entry.rows[0]['num_train']}, as in the other rows")
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
    if entry.images is None or not re.fullmatch("[0-9a-f]{64}", entry.head["data"]):
        yield f"data is {entry.head['data']:.80}, which is not the checksum of CIFAR-10"
    for name, value in FIXED.items():
        if get_option(settings, name) != value:
            yield f"settings: {name} is {get_option(settings, name)}: must be {value}"
    for name in sorted(entry.head["environment"]):
        if name.startswith("MKL_"):
            yield f"environment: {name} is set, which changes the GEMM rate more than the training: unset it"
    if not is_ours(net := str(get_option(settings, "model.net.class_path"))):
        yield f"settings: model.net is {net}: must be a network of this project; add yours to cifar_lit/networks"
    max_epochs = get_option(settings, "trainer.max_epochs")
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
        if get_option(settings, name) == value != get_option(read, name):
            raise UserError(f"{name} is {get_option(read, name)} in another spelling: must be {value}")
    if any(value and name in ("ckpt_path", "weights") for name, value in leaves(read)):
        raise UserError("ckpt_path or weights is given: each seed trains from its own initial weights")
    for kind, reason in REFUSED_CALLBACKS.items():
        if any(isinstance(one, kind) for one in _callbacks(cli)):
            raise UserError(f"trainer.callbacks has a {kind.__name__}, and {reason}")


def _callbacks(cli: FitCLI) -> list[Any]:
    callbacks = cli.config_init["trainer"]["callbacks"] or []
    return callbacks if isinstance(callbacks, list) else [callbacks]


def _row_problems(row: Row, seed: int, images: Images | None, cli: FitCLI) -> Iterator[str]:
    num_test, max_epochs = row["num_test"], cli.config["trainer"]["max_epochs"] or 0
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
    if images and (text := _wrong_num_train(row["num_train"], images, cli)):
        yield f"num_train is {row['num_train']}: must be {text}"
    least = 1 if any(isinstance(one, EarlyStopping) for one in _callbacks(cli)) else max_epochs
    if not least <= row["epochs"] <= max_epochs:
        yield f"epochs is {row['epochs']}: must be {max_epochs}" + " at most" * (least != max_epochs)


def _wrong_num_train(num_train: int, images: Images, cli: FitCLI) -> str:
    """Return how many training images there must be, if it is another number; by a fraction, a hash holds out."""
    val_size = cli.datamodule.hparams["val_size"]
    share = 0.1 if val_size is None else val_size if isinstance(val_size, float) else val_size / images.num_train
    missing = images.num_train * (1 - share) - num_train
    # A fraction is one of hashes; a whole number may hold out some copies more.
    margins = (-0.01, 0.01) if isinstance(val_size, float) else (0, 0.001 * (share > 0))
    is_right = margins[0] <= missing / images.num_train <= margins[1] and num_train > 0
    return "" if is_right else f"{num_train + missing:.0f}, by data.val_size"


def count(cli: FitCLI, num_epochs: int, num_train: int) -> int | None:
    """Count the multiplications of a training with these settings."""
    trainer, data = cli.config["trainer"], cli.datamodule.hparams
    num_images = num_trained(num_train, data["batch_size"])
    num_batches, limit = -(-num_images // data["batch_size"]), trainer["limit_train_batches"]
    if limit is not None:
        num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    images: Counter[tuple[int, int]] = Counter()
    for epoch in range(num_epochs):
        size = size_of_epoch(data["image_sizes"] or [data["image_size"]], epoch, trainer["max_epochs"])
        images[epoch, size] += min(num_images, num_batches * data["batch_size"])
    num_steps = num_epochs * -(-num_batches // (trainer["accumulate_grad_batches"] or 1))
    return count_multiplications(cli.model, images, num_steps)
