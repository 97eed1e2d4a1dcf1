"""Weights of the classes in the training loss, for classes of different size."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from cifar_lit.data.listing import say
from cifar_lit.errors import UserError, require

ClassWeights = Literal["balanced"] | Sequence[float] | None


def check_class_weights(given: Any, num_classes: int) -> Any:
    """Return the option as plain values, of a list, an array or a tensor; what is none of these is a ``UserError``."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    try:
        weights = [float(weight) for weight in given if not isinstance(given, str | dict)]
    except (TypeError, ValueError):
        weights = []
    expected = f"balanced, or a number for each of the {num_classes} classes, in their order"
    require("class_weights", given, len(weights) == num_classes, expected)
    require("class_weights", weights, all(1e-30 <= weight <= 1e30 for weight in weights), "from 1e-30 to 1e30")
    return weights


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return N / (C * n) for each of C classes, of which n of the N images are, as scikit-learn: ``(C,)``, float32."""
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return (len(labels) / (num_classes * counts.clamp(min=1))).float()


def loss_weights(given: Any, classes: Sequence[str], trainer: Any = None) -> Tensor | None:
    """Return the weights of a training, on its device; None for none, or while there is no training to balance."""
    if given is None or (given == "balanced" and trainer is None):
        return None
    if given != "balanced":
        weights = torch.tensor(given)
    elif train := getattr(trainer.datamodule, "train", None):
        weights = balanced_weights(train.labels, len(classes))
        ends = (f"{weights[place]:.3g} ({classes[place]})" for place in (int(weights.argmin()), int(weights.argmax())))
        say(f"class weights, balanced: from {' to '.join(ends)}")
    else:
        raise UserError("`class_weights` balanced counts the images of a CIFAR10DataModule: give a list of numbers")
    return weights.to(trainer.strategy.root_device if trainer else "cpu")


def share_of_process(labels: Tensor, weights: Tensor) -> Tensor | float:
    """Return the factor with which the mean of the weighted means of all processes is that of all their images.

    Labels are ``(n,)``, or shares ``(n, num_classes)``; weights are those of the classes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1.0
    own = (weights[labels] if labels.ndim == 1 else labels.to(weights) @ weights).sum()
    distributed.all_reduce(total := own.clone())
    return own * distributed.get_world_size() / total
