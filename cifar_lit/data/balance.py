"""Weights of the classes in the training loss, for classes of different size."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cifar_lit.data.listing import say
from cifar_lit.errors import UserError, require

ClassWeights = Literal["balanced"] | Sequence[float] | None
MAX_GIVEN = 1000  # numbers, which is as many as are read from the settings of a checkpoint


def check_class_weights(given: Any, num_classes: int) -> list[float] | Literal["balanced"] | None:
    """Return the option as plain values, of a list, an array or a tensor; what is none of these is a ``UserError``."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    try:
        weights = [float(weight) for weight in given if not isinstance(given, str | dict)]
    except (TypeError, ValueError):
        weights = []
    expected = f"balanced, or a number for each of the {num_classes} classes, in their order"
    require("class_weights", given, len(weights) == num_classes, expected)
    require("class_weights", given, len(weights) <= MAX_GIVEN, f"balanced: a list has at most {MAX_GIVEN:,} numbers")
    require("class_weights", weights, all(0 < weight < math.inf for weight in weights), "finite numbers above 0")
    return weights


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return N / (C * n) for each of C classes, of which n of the N images are: ``(C,)``, float32.

    As scikit-learn's ``class_weight="balanced"`` (after G. King and L. Zeng, 2001): the weights of all images add up to
    their number. Nothing depends on the weight of a class without images.
    """
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return (len(labels) / (num_classes * counts.clamp(min=1))).float()


def loss_weights(given: list[float] | str | None, classes: Sequence[str], trainer: Any = None) -> Tensor | None:
    """Return the weights of a training, on its device; None for none, or while there is no training to balance."""
    if given is None or (given == "balanced" and trainer is None):
        return None
    if given == "balanced":
        train = getattr(trainer.datamodule, "train", None)
        if train is None:
            raise UserError("`class_weights` balanced counts the images of a CIFAR10DataModule: give a list of numbers")
        weights = balanced_weights(train.labels, len(classes))
        ends = (f"{float(weights[place]):.3g} ({classes[place]})" for place in (weights.argmin(), weights.argmax()))
        say(f"class weights, balanced: from {' to '.join(ends)}")
    else:
        weights = torch.tensor(given)
    return weights.to(trainer.strategy.root_device if trainer else "cpu")
