"""One trial of a sweep: what it tries, and how its training is watched."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

Suggest = Callable[[Any], Any]
"""Takes a trial of Optuna and gives the value that it tries."""


def parse_range(text: str) -> tuple[str, Suggest]:
    """Read what ``--set`` says.

    Args:
        text: ``NAME=log:LOW:HIGH``, ``NAME=lin:LOW:HIGH``, ``NAME=int:LOW:HIGH`` or ``NAME=VALUE,VALUE,...``.

    Returns:
        The name of the option of ``fit``, without its hyphens, and how a value is found.

    Raises:
        ValueError: If it is none of these.
    """
    name, equals, values = text.partition("=")
    name = name.removeprefix("--")
    kind, *ends = values.split(":")
    try:
        if not (name and equals and values):
            raise ValueError("a name or its values are missing")
        if kind in ("log", "lin", "int") and ends:
            low, high = (int(end) if kind == "int" else float(end) for end in ends)
            if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "log" or low > 0)):
                raise ValueError("the first number must be the lower, and above 0 for log")
            if kind == "int":
                return name, lambda trial: trial.suggest_int(name, low, high)
            return name, lambda trial: trial.suggest_float(name, low, high, log=kind == "log")
        if "," not in values:
            raise ValueError("one value alone is no search")
    except ValueError as error:
        raise ValueError(
            f"--set {text}: {error}; give NAME=log:LOW:HIGH, NAME=lin:LOW:HIGH, NAME=int:LOW:HIGH or NAME=VALUE,VALUE"
        ) from error
    choices = values.split(",")
    return name, lambda trial: trial.suggest_categorical(name, choices)


class Watcher(Callback):
    """Tells a trial how good its training is on validation after each epoch, and ends it where that is hopeless.

    Args:
        trial: The trial of Optuna.
        title: What its progress bar is called.

    Attributes:
        best: The highest accuracy on validation; None before there is one.
        is_pruned: Whether it was ended.
    """

    def __init__(self, trial: Any, title: str) -> None:
        self.best: float | None = None
        self.num_epochs = 0
        self.is_pruned = False
        self._trial = trial
        self._bar = tqdm(desc=title, unit="epoch", disable=None, leave=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be judged.

        Args:
            trainer: What trains.
            pl_module: What is trained.

        Raises:
            ValueError: If there is no validation, or more than one process.
        """
        if trainer.limit_val_batches == 0:
            raise ValueError(
                "a sweep is judged on validation, and there is none: give a --data.val_size, as 5000 or 0.1"
            )
        if trainer.world_size > 1:
            raise ValueError(f"--trainer.devices: a trial runs in one process, and these would be {trainer.world_size}")
        self._bar.reset(total=trainer.max_epochs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the accuracy of the epoch.

        Args:
            trainer: What trains.
            pl_module: What is trained.
        """
        if trainer.sanity_checking:
            return
        accuracy = float(trainer.callback_metrics["Accuracy/val"])
        self.num_epochs = trainer.current_epoch + 1
        self.best = accuracy if self.best is None else max(self.best, accuracy)
        self._bar.update()
        self._trial.report(accuracy, self.num_epochs)
        if self.num_epochs != trainer.max_epochs and self._trial.should_prune():
            self.is_pruned = trainer.should_stop = True

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
