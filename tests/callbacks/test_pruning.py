"""Pruning: a trial that is worse than the others is stopped."""

from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from cifar_lit.callbacks.pruning import PruningCallback
from cifar_lit.errors import UserError

MODULE: Any = None  # which is not used


class FakeTrial:
    def __init__(self) -> None:
        self.reported: list[tuple[float, int]] = []

    def report(self, accuracy: float, epoch: int) -> None:
        self.reported.append((accuracy, epoch))

    def should_prune(self) -> bool:
        return self.reported[-1][0] < 0.5


def make_trainer(**options: Any) -> Any:
    defaults = {"sanity_checking": False, "should_stop": False, "max_epochs": 5, "current_epoch": 0}
    return SimpleNamespace(**{**defaults, "limit_val_batches": 1.0, "world_size": 1, "precision": "32-true", **options})


def test_of_a_loss_the_negative_is_reported_so_that_the_lowest_is_best() -> None:
    trial, trainer = FakeTrial(), make_trainer()
    callback = PruningCallback(trial, tqdm(disable=True))
    callback.judged_by = "Loss/val"
    for trainer.current_epoch, loss in enumerate((2.0, 0.5, 1.0)):
        trainer.callback_metrics = {"Accuracy/val": 0.9, "Loss/val": loss}
        callback.on_validation_end(trainer, MODULE)
    assert callback.best == -0.5
    assert trial.reported[1] == (-0.5, 2)


def fit(accuracies: list[float]) -> tuple[PruningCallback, FakeTrial, Any]:
    trial, trainer = FakeTrial(), make_trainer()
    callback = PruningCallback(trial, tqdm(disable=True))
    callback.on_fit_start(trainer, MODULE)
    for trainer.current_epoch, accuracy in enumerate(accuracies):
        assert not trainer.should_stop
        trainer.callback_metrics = {"Accuracy/val": accuracy}
        callback.on_validation_end(trainer, MODULE)
    callback.on_fit_end(trainer, MODULE)
    return callback, trial, trainer


def test_a_hopeless_trial_is_stopped() -> None:
    callback, trial, trainer = fit([0.6, 0.7, 0.4])
    assert trial.reported == [(0.6, 1), (0.7, 2), (0.4, 3)]
    assert (trainer.should_stop, callback.is_pruned, callback.num_epochs, callback.best) == (True, True, 3, 0.7)


def test_a_trial_is_not_pruned_in_its_last_epoch() -> None:
    callback, _, trainer = fit([0.6, 0.7, 0.6, 0.6, 0.4])
    assert (trainer.should_stop, callback.is_pruned, callback.best) == (False, False, 0.7)


def test_the_sanity_check_is_not_reported() -> None:
    trial = FakeTrial()
    callback = PruningCallback(trial, tqdm(disable=True))
    callback.on_validation_end(make_trainer(sanity_checking=True), MODULE)
    assert trial.reported == []


def test_a_fit_that_cannot_be_judged_is_refused() -> None:
    callback = PruningCallback(FakeTrial(), tqdm(disable=True))
    for options, expected in (({"limit_val_batches": 0}, "`val_size`"), ({"world_size": 2}, "`devices`")):
        with pytest.raises(UserError, match=expected):
            callback.on_fit_start(make_trainer(**options), MODULE)
    with pytest.raises(UserError, match="no epoch of the trial is validated"):
        callback.on_fit_end(make_trainer(), MODULE)
