"""Splits of a dataset; what is held out of the training images, for validation or test, by the hash of each image."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from cifar_lit.data.augment import CHUNK
from cifar_lit.data.stored import StoredImages, select
from cifar_lit.errors import UserError

SplitName = Literal["train", "val", "test"]
HASH_BITS = 63  # of 64, so that a hash is an int64 of at least 0
NONE = -1  # the limit of a class of which nothing is held out
TEST_SHARE = 0.2  # of the images of a dataset without a test split
TEST_SEED = -1  # of the hashes that choose them, and no ``split_seed``: validation is chosen by others


class Split(NamedTuple):
    """The images and labels of one split."""

    images: Tensor  # (N, size, size, 3), uint8, RGB, contiguous; or StoredImages
    labels: Tensor  # (N,), int64, indices into the source's classes

    def part(self, is_in: Tensor | slice) -> "Split":
        """Return the images where a mask ``(N,)``, bool, is set, or those of a slice, in their order."""
        return Split(select(self.images, is_in), self.labels[is_in])


def mix_classes(split: Split, hashes: Tensor) -> Split:
    """Put images that lie class by class into the order of their hashes, so that some of them are of all classes."""
    if (split.labels.diff() < 0).any():
        return split
    order = hashes.argsort(stable=True)
    return Split(select(split.images, order), split.labels[order])


def hash_images(images: Tensor, *, seed: int) -> Tensor:
    """Hash the bytes of each image together with a seed: ``(N,)``, int64, uniform in [0, 2**63).

    Of ``StoredImages`` that is the version of 32x32 pixels.
    """
    if isinstance(images, StoredImages):
        return torch.cat([hash_images(images.small[part], seed=seed) for part in torch.split(images.index, CHUNK)])
    key = hashlib.blake2b(str(seed).encode()).digest()
    pixels = images.numpy()
    digests = b"".join(hashlib.blake2b(image, digest_size=8, key=key).digest() for image in pixels)
    return torch.from_numpy((np.frombuffer(digests, "<u8") >> 1).astype(np.int64))


def hold_out_test(split: Split, classes: Sequence[str]) -> Tensor:
    """Choose the images to test on in a dataset without a test split, ``(N,)``, bool: those with the lowest hashes.

    Neither a seed nor other images nor names change the choice, but in a class where it would leave nothing.
    """
    hashes = hash_images(split.images, seed=TEST_SEED)
    for label, name in enumerate(classes):
        if len(set(hashes[split.labels == label].tolist())) < 2:
            raise UserError(
                f"{name} has one picture, or copies of one: add another, to train on one and test on another"
            )
    return hold_out(hashes, split.labels, TEST_SHARE, classes)[0]


def hold_out(
    hashes: Tensor,
    labels: Tensor,
    val_size: int | float | None,
    classes: Sequence[str],
    *,
    known: list[int] | None = None,
) -> tuple[Tensor, list[int]]:
    """Choose the images to hold out for validation: those of a class whose hash is at most the limit of the class.

    Limits that are ``known``, from a checkpoint, are kept unless they leave nothing for training or validation.

    Args:
        hashes: Those of the images, ``(N,)``, int64.
        labels: ``(N,)``, int64.
        val_size: How many images, or which fraction of them; None for a tenth of each class.
        classes: Names of the classes.
        known: The limits of an earlier split.

    Returns:
        Which images are held out, ``(N,)``, bool, and the limit of each class.
    """
    limits = known or val_limits(hashes, labels, val_size, classes)
    is_val = hashes <= torch.tensor(limits)[labels]
    if known and (bool(is_val.all()) or not bool(is_val.any())):
        return hold_out(hashes, labels, val_size, classes)
    return is_val, limits


def val_limits(hashes: Tensor, labels: Tensor, val_size: int | float | None, classes: Sequence[str]) -> list[int]:
    """Return the limit of the hashes of each class.

    A fraction is one limit for all classes, so that an image is held out or not whatever other images there are. Only
    in a class that would be left without validation or training images, the lowest hash is held out, or the highest
    is not; a class of one image is trained on. A number is stratified: of each class those with the lowest hashes. None
    is the number that is a tenth of each class, with the exceptions of a fraction.

    Copies of an image within a class are never separated. A number may therefore hold out some copies more.
    """
    of_classes = [[NONE, *hashes[labels == label].sort().values.tolist()] for label in range(len(classes))]
    limits, num_images = [NONE] * len(classes), len(labels)
    if isinstance(val_size, float):
        limits = [int(val_size * 2**HASH_BITS) - 1] * len(classes)
    elif val_size is None or 0 < val_size < num_images:
        counts = torch.bincount(labels, minlength=len(classes))
        quotas = [round(n / 10) for n in counts.tolist()] if val_size is None else _quotas(counts, val_size)
        limits = [of_class[quota] for of_class, quota in zip(of_classes, quotas, strict=True)]
    if not isinstance(val_size, int):
        limits = [_leave_some(limit, of_class[1:]) for limit, of_class in zip(limits, of_classes, strict=True)]
    if not 0 < int((hashes <= torch.tensor(limits)[labels]).sum()) < num_images:
        if val_size is None:
            problem = f"there are {num_images} training images, too few to hold some out for validation"
            raise UserError(f"{problem}: add some, or set `val_size` to 0")
        problem = f"`val_size` is {val_size}, and there are {num_images} training images"
        raise UserError(f"{problem}: must leave images for both, for example 0.1")
    for name, limit, of_class in zip(classes, limits, of_classes, strict=True):
        if NONE < limit == of_class[-1]:
            raise UserError(f"`val_size` is {val_size}: leaves {name} without training images, must be smaller")
    return limits


def _leave_some(limit: int, hashes: Sequence[int]) -> int:
    """Return the limit next to this one that holds out some of the hashes, which are sorted, and leaves some."""
    return min(max(limit, hashes[0]), hashes[-1] - 1) if hashes and hashes[0] < hashes[-1] else NONE


def _quotas(counts: Tensor, num_val: int) -> list[int]:
    """Share a number among the classes, by the largest remainder method: the quotas add up to it exactly."""
    exact = counts.double() * (num_val / int(counts.sum()))
    quotas = exact.floor().long()
    quotas[torch.argsort(exact - quotas, descending=True, stable=True)[: num_val - int(quotas.sum())]] += 1
    return [int(quota) for quota in quotas]


def check_state(state: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raise a ``UserError`` unless a checkpoint's state of the data has the form that is written."""
    limits, texts = state.get("limits"), [state.get(name, "") for name in get_args(SplitName)]
    is_list = isinstance(limits, list) and len(limits) == len(classes)
    is_valid = limits is None or (is_list and all(type(n) is int and NONE <= n < 2**HASH_BITS for n in limits))
    if not (is_valid and all(isinstance(text, str) and text.isprintable() for text in texts)):
        raise UserError("the checkpoint is damaged: it does not say which images were trained on in the usual form")


def fingerprint(hashes: Tensor, labels: Tensor, classes: Sequence[str], *, ordered: bool = False) -> str:
    """Describe images by their number and one hash over images, labels and classes; their order counts if asked for."""
    pairs = torch.stack((hashes, labels)).numpy()
    if not ordered:
        pairs = pairs[:, np.lexsort(pairs)]
    digest = hashlib.blake2b("\0".join(classes).encode(), digest_size=8)
    digest.update(pairs.astype("<i8").tobytes())
    return f"{len(labels):,} images, hash {digest.hexdigest()}"
