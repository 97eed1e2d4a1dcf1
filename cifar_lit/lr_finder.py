"""A learning rate to begin with: Lightning's range test (arXiv 1506.01186), on a copy of the model."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner.tuning import Tuner
from matplotlib.figure import Figure

from cifar_lit.checkpoint import SafeCheckpointIO
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import without_notices

LOWEST, HIGHEST, NUM_STEPS = 1e-4, 1.0, 200
"""The range. In Lightning's 100 steps from 1e-8 the tutorial's network hardly begins to learn. With these its
rate came out at 0.011, 0.011 and 0.017 for three seeds and, with a momentum of 0.9, at 0.024, 0.023 and 0.033."""
_BETA = 0.98  # what Lightning smooths the loss with


def find_lr(model: ImageClassifier, datamodule: CIFAR10DataModule, trainer: Trainer, picture: Path) -> float:
    """Train for 200 steps, each at a higher learning rate, and take the rate where Lightning finds the steepest fall.

    The model, and all chance of the training that comes after, are left as they were.

    Args:
        model: The model, before its first step.
        datamodule: Its data.
        trainer: What will train it, of which device, precision, accumulation and clipping are taken.
        picture: Where the curve is drawn, as PNG.

    Returns:
        The learning rate.

    Raises:
        ValueError: If the loss falls nowhere, or if there is more than one rate or process.
    """
    if model.hparams["muon_lr"]:
        raise ValueError(
            f"--lr_finder finds one rate, and beside --model.muon_lr {model.hparams['muon_lr']} there are two: give "
            "--model.muon_lr 0, or leave it out and try rates with scripts/sweep.py"
        )
    if trainer.world_size > 1:
        raise ValueError(f"--lr_finder needs one process, and there are {trainer.world_size}: give --trainer.devices 1")
    tried = copy.deepcopy(model)
    tried.hparams["compile"] = False
    device = trainer.strategy.root_device
    with torch.random.fork_rng(), without_notices():
        own_trainer = Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            precision=trainer.precision,
            max_epochs=NUM_STEPS,  # as many as it takes: a small dataset has few steps in an epoch
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            plugins=[SafeCheckpointIO()],
            default_root_dir=picture.parent,  # it keeps the weights there meanwhile
        )
        found = Tuner(own_trainer).lr_find(
            tried, datamodule=datamodule, min_lr=LOWEST, max_lr=HIGHEST, num_training=NUM_STEPS, update_attr=False
        )
        lr = found.suggestion() if found is not None else None
    if found is None or lr is None:
        raise ValueError("--lr_finder finds nothing, for the loss is not finite at any rate: leave it out")
    # Lightning divides the mean of n losses by what belongs to n + 1, so that the curve would begin at a half.
    losses = [loss * (1 - _BETA ** (n + 1)) / (1 - _BETA**n) for n, loss in enumerate(found.results["loss"], 1)]
    draw_lrs(found.results["lr"], losses, lr).savefig(picture, dpi=120)
    return float(lr)


def draw_lrs(lrs: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
    """Draw the loss over the learning rate.

    Args:
        lrs: The rates.
        losses: The smoothed loss at each.
        chosen: The rate that was taken.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(5, 3.2), layout="tight")
    axes = figure.add_subplot()
    axes.semilogx(lrs, losses)
    finite = [loss for loss in losses if math.isfinite(loss)]
    low, start = min(finite), finite[0]
    margin = 0.1 * (start - low) or 0.1
    axes.set_ylim(low - margin, start + 3 * margin)  # the end, where it diverges, is of no interest
    axes.axvline(chosen, linestyle="--", color="0.5")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title(f"suggested: {chosen:.2g}")
    return figure
