"""A run of an experiment: a training whose last weights are judged on validation, and later their test."""

import argparse
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_lit.callbacks.best import MONITORED
from cifar_lit.callbacks.nonfinite import DivergedError
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.auto import settle
from cifar_lit.cli.config import expand_homes
from cifar_lit.cli.filters import filter_logs, without_notices
from cifar_lit.cli.fit import fit
from cifar_lit.cli.start import with_config
from cifar_lit.cli.trainer import check_callbacks_of_trial, make_trainer
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.evaluation.score import restore_nothing, score
from cifar_lit.machine import computes_on_cpu, describe_machine, precision_to_score
from cifar_lit.metrics import Predictions
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.finding import import_network
from cifar_lit.run import Run

Row = dict[str, Any]
"""What is kept of a run, as JSON."""
MACHINE_OPTIONS = ("data.root", "data.cache_dir", "data.mirror", "trainer.default_root_dir", "trainer.accelerator")
"""Options of ``fit`` that may differ between the machines that share the runs."""
OFF = ("enable_checkpointing", "logger", "enable_progress_bar", "enable_model_summary")
TRIAL_OPTIONS = ["--no_report", "--trainer.log_every_n_steps=0", *(f"--trainer.{name}=false" for name in OFF)]
"""Options of ``fit`` for a run whose result is kept elsewhere, and which leaves nothing else behind.

They come last: a file of settings may have others.
"""
LEFT_OUT = dict.fromkeys(
    ("report", "no_report", *(f"trainer.{name}" for name in (*OFF, "log_every_n_steps"))),
    "a run leaves only its result",
)
"""What there is for these options, where somebody gives them."""
RUN_OPTIONS = [
    *TRIAL_OPTIONS,
    # Validated once, at the end, by all images.
    *("--trainer.limit_val_batches=0", "--trainer.limit_test_batches=null", "--trainer.fast_dev_run=false"),
    *("--trainer.devices=1", "--trainer.num_nodes=1"),
    f"--checkpoint.monitor={MONITORED[0]}",  # any other needs validation
]
"""Those of a run that is judged by its last weights."""


def add_machine_options(parser: argparse.ArgumentParser, *others: str) -> None:
    """Add these options of ``fit``, and others that are passed on to it or refused."""
    for name in (*others, *MACHINE_OPTIONS):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)


def machine_options(options: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in MACHINE_OPTIONS if (value := vars(options)[name]) is not None}


def as_options(values: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def check(args: Sequence[str], own: Sequence[str] = RUN_OPTIONS) -> FitCLI:
    """Refuse the options of a run that ``fit`` would refuse; the images are not read."""
    filter_logs()
    with without_notices():
        cli = FitCLI(with_config(expand_homes([*args, *own])), is_trial=True)
    if own:
        check_callbacks_of_trial(cli)
    return cli


def settled_precision(args: Sequence[str], own: Sequence[str] = RUN_OPTIONS) -> str:
    """Return what the precision ``auto`` among options of ``fit`` stands for on this machine, now."""
    cli = check(args, own)
    settle(cli, None)
    return str(cli.trainer_options["precision"])


def train(args: Sequence[str], *, val_images: str | None, save: Path | None) -> Row:
    """Train with options of ``fit``, score the last weights on validation, and return what there is to keep.

    A training that diverges has no accuracy, and the reason instead.

    Args:
        args: Options of ``fit``.
        val_images: The fingerprint of the images that others are judged on, which must be the same.
        save: Where the last weights are saved, if they are.
    """
    watch = Watch(val_images)
    try:
        with without_notices():
            fit([*args, *RUN_OPTIONS], pruner=watch)
            row = watch.result()
        if save:
            save.parent.mkdir(exist_ok=True)
            watch.trainer.save_checkpoint(save, weights_only=True)
    except DivergedError as error:
        row = {"accuracy": None, "diverged": str(error).partition(":")[0]}
    row |= describe_machine(watch.trainer.strategy.root_device)
    del watch
    gc.collect()  # the Trainer is part of cycles, which hold images and weights on the device
    return row


def score_test(file: Path, *, network: object, precision: object, machine: Mapping[str, str]) -> Row:
    """Score weights that ``train`` saved on the test images, in the precision of its row.

    ``network`` is the one that the options name.
    """
    filter_logs()
    if isinstance(network, str) and "." in network:
        import_network(network)  # the file alone is not trusted: the folder may be somebody else's
    run = Run(file)
    places = {name: value for name in ("root", "cache_dir", "mirror") if (value := machine.get(f"data.{name}"))}
    with without_notices():
        accelerator = machine.get("trainer.accelerator", "auto")
        precision = precision_to_score(precision, on_cpu=computes_on_cpu(accelerator))
        device = {"accelerator": accelerator, "devices": 1, "precision": precision}
        trainer = make_trainer(device | dict.fromkeys(OFF, False))
        model = run.model()
        score(trainer, model, run.datamodule(**places), splits=("test",))
    assert model.predictions is not None
    return {**_accuracies(model.predictions, model.classes), "num_test": len(model.predictions.labels)}


def _accuracies(predictions: Predictions, classes: Sequence[str]) -> Row:
    metrics = predictions.metrics(classes)
    plain = metrics["Accuracy/test"]
    return {"accuracy": metrics.get("TTAAccuracy/test", plain), "accuracy_without_tta": plain}


class Watch(Callback):
    """Counts what a training does, and scores its last weights on validation."""

    trainer: Trainer
    model: ImageClassifier

    def __init__(self, val_images: str | None) -> None:
        self.val_images = val_images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self.trainer, self.model = trainer, pl_module
        if trainer.world_size > 1:
            raise UserError(f"`devices`: a run trains in one process, not in {trainer.world_size}")
        val_images = trainer.datamodule.fingerprints.get("val")  # type: ignore[attr-defined]
        if val_images is None:
            raise UserError("`val_size`: the runs are judged on validation, and there is none: give 5000 or 0.1")
        if self.val_images not in (None, val_images):
            raise UserError(
                f"`to`: the runs there are judged on other images ({self.val_images}) than these ({val_images}): "
                "give another folder"
            )

    def result(self) -> Row:
        """Return the validation accuracy of the last weights, and what the training took."""
        trainer, model, datamodule = self.trainer, self.model, self.trainer.datamodule  # type: ignore[attr-defined]
        throughput = next(one for one in trainer.callbacks if isinstance(one, Throughput))  # type: ignore[attr-defined]
        row = {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seconds": round(throughput.train_seconds, 3),
            "multiplications": count_multiplications(model, throughput.trained, trainer.global_step),
            "val_images": datamodule.fingerprints["val"],
            "precision": str(trainer.precision),
        }
        # As a test, which knows test-time augmentation; without the data module, which would load the test images.
        loader = datamodule.val_dataloader()
        trainer.datamodule = None  # type: ignore[attr-defined]
        restore_nothing(trainer)
        trainer.test(model, dataloaders=loader, verbose=False)
        trainer.datamodule = datamodule  # type: ignore[attr-defined]
        assert model.predictions is not None
        return {**_accuracies(model.predictions, model.classes), "num_val": len(model.predictions.labels), **row}
