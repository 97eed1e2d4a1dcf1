"""Early stopping of the trials of a sweep."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from cifar_lit.errors import UserError


class PruningCallback(Callback):
    """Reports a metric of validation in each epoch to a trial of Optuna, and stops the fit if the trial is pruned.

    Of a loss it is the negative: what a study searches for is the highest value.
    """

    def __init__(self, trial: Any, bar: "tqdm[Any]") -> None:
        self.trial = trial
        self.bar = bar
        self.judged_by = "Accuracy/val"
        self.best = -math.inf
        self.num_epochs = 0
        self.is_pruned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.limit_val_batches == 0:
            raise UserError("`val_size`: a sweep is judged on validation, and there is none: give 5000 or 0.1")
        if trainer.world_size > 1:
            raise UserError(f"`devices`: a trial runs in one process, not in {trainer.world_size}")
        self.bar.reset(total=trainer.max_epochs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[self.judged_by]) * (-1 if self.judged_by == "Loss/val" else 1)
        self.best = max(self.best, value)
        self.num_epochs = trainer.current_epoch + 1
        self.bar.update()
        self.trial.report(value, self.num_epochs)
        if self.num_epochs != trainer.max_epochs and self.trial.should_prune():
            self.is_pruned = trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.num_epochs:
            raise UserError("`check_val_every_n_epoch` or `limit_val_batches`: no epoch of the trial is validated")
