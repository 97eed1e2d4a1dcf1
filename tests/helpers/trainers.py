"""Trainers that show and write nothing or are looked at, and modules whose validation is scripted."""

from collections.abc import Sequence
from typing import Any

import pytest
from lightning.pytorch import Trainer

from cifar_lit.cli.trainer import make_trainer
from cifar_lit.module import ImageClassifier

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def quiet_trainer(**options: Any) -> Trainer:
    """Return a Trainer on the CPU that writes nothing, unless the options say otherwise."""
    return Trainer(**{**QUIET, **options})


class Scripted(ImageClassifier):
    """Trains as usual, and has the given accuracy and loss in each validation.

    Args:
        classes: Names of the classes.
        validations: Accuracy and loss, and perhaps macro accuracy, of each validation.
    """

    def __init__(self, *, classes: Sequence[str], validations: Sequence[tuple[float, ...]]) -> None:
        super().__init__(classes=classes)
        self.validations = iter(validations)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(
            dict(zip(("Accuracy/val", "Loss/val", "MacroAccuracy/val"), next(self.validations), strict=False))
        )


def note_precisions(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each Trainer that a module of the commands makes adds its precision."""
    used: list[str] = []

    def noting(options: dict[str, Any]) -> Trainer:
        trainer = make_trainer(options)
        used.append(str(trainer.precision))
        return trainer

    monkeypatch.setattr(f"cifar_lit.commands.{command}.make_trainer", noting)
    return used
