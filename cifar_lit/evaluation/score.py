"""One pass over the images of a split -> metrics -> ``Results``."""

from typing import Any

from lightning.pytorch import Trainer

from cifar_lit.data import Split
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.machine import return_freed_memory
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results


def score(
    trainer: Trainer,
    model: ImageClassifier,
    datamodule: CIFAR10DataModule,
    *,
    splits: tuple[str, ...] = ("val", "test"),
) -> dict[str, Any]:
    """Return the metrics of the model's weights on validation (where there is one) and test; set its predictions."""
    if splits == ("val",) and not datamodule.has_val:
        raise UserError("`val_size` is 0: there are no validation images to score; use cifar-lit test")
    return_freed_memory()  # of a training, which needed more: other images are read now
    restore_nothing(trainer)
    metrics: dict[str, Any] = {}
    if "val" in splits and datamodule.has_val:
        trainer.validate(model, datamodule=datamodule, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.endswith("/val")}
    if "test" in splits:
        model.predictions = None  # those of an earlier test
        if 0 < trainer.limit_test_batches < 1:  # a fraction that is no whole batch would be refused after the training
            datamodule.prepare_data()
            datamodule.setup("test")
            is_none = trainer.limit_test_batches * len(datamodule.test_dataloader()) < 1
            trainer.limit_test_batches = 1 if is_none else trainer.limit_test_batches
        trainer.test(model, datamodule=datamodule, verbose=False)
        metrics |= model.predictions.metrics(model.classes) if model.predictions else {}
    return metrics


def restore_nothing(trainer: Trainer) -> None:
    """Let the Trainer take the weights that it is given, and load no file that we do not name.

    In a SLURM job it would load ``hpc_ckpt_*.ckpt``, of the moment when some job was put into the queue again.
    """
    connector = trainer._checkpoint_connector
    connector._ckpt_path, connector._user_managed = None, True  # the user has set a path: none


def describe(
    model: ImageClassifier, datamodule: CIFAR10DataModule, metrics: dict[str, Any], **training: Any
) -> Results:
    """Return the results of a model that was just scored; ``training`` are other fields of ``Results``."""
    copies = [text for text in datamodule.copies.values() if text is not None]
    num_val = model.num_val if metrics.get("Accuracy/val") is not None else 0
    num_test = len(model.predictions.labels) if model.predictions else 0
    return Results(
        source=datamodule.hparams["source"],
        title=datamodule.source.title,
        num_train=len(datamodule.train.labels) if datamodule.train else 0,
        num_val=num_val,
        num_test=num_test,
        total_val=_total(datamodule.val, num_val),
        total_test=_total(datamodule.test, num_test),
        num_classes=len(model.classes),
        network=type(model.net).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        test_images=datamodule.fingerprints.get("test"),
        kernels=model.hparams["kernels"],
        duplicates="; ".join(filter(None, copies)) or "none found" if copies else None,
        metrics={"Accuracy/val": None, "Loss/val": None, **metrics},
        **training,
    )


def _total(split: Split | None, num_scored: int) -> int | None:
    """Return the number of images of a split if only some of them were scored."""
    return len(split.labels) if split and 0 < num_scored < len(split.labels) else None
