"""Splits of a dataset, and the stratified split of the training images into training and validation."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cifar_lit.errors import UserError

SplitName = Literal["train", "val", "test"]


class Split(NamedTuple):
    """The images and labels of one split, in memory."""

    images: Tensor  # (N, 32, 32, 3), uint8, RGB, contiguous
    labels: Tensor  # (N,), int64, indices into the source's classes


def hold_out(split: Split, val_size: int | float, *, seed: int) -> tuple[Split, Split]:
    """Split at random, stratified by class, into images to train on and images held out, each in their old order."""
    num_images = len(split.labels)
    num_val = round(val_size * num_images) if isinstance(val_size, float) else val_size
    if not 0 < num_val < num_images:
        problem = f"`val_size` is {val_size}, and there are {num_images} training images"
        raise UserError(f"{problem}: must leave images for both, for example 0.1")
    counts = torch.bincount(split.labels)
    # Largest remainder method: the numbers per class add up to num_val exactly.
    exact = counts.double() * (num_val / num_images)
    quota = exact.floor().long()
    quota[torch.argsort(exact - quota, descending=True, stable=True)[: num_val - int(quota.sum())]] += 1
    if bool((quota >= counts).any()):
        raise UserError(f"`val_size` is {val_size}: leaves a class without training images, must be smaller")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(num_images, dtype=torch.bool)
    for label, number in enumerate(quota.tolist()):
        positions = (split.labels == label).nonzero().squeeze(1)
        held_out[positions[torch.randperm(len(positions), generator=generator)[:number]]] = True
    train, val = (Split(split.images[part], split.labels[part]) for part in (~held_out, held_out))
    return train, val
