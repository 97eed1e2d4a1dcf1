"""Images that are in two splits of a dataset, or in two classes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.data.listing import say
from cifar_lit.data.split import Split, hash_images
from cifar_lit.data.stored import small
from cifar_lit.errors import UserError
from cifar_lit.files import printable

Duplicates = Literal["keep", "drop"]
NAMES = {"train": "training", "val": "validation", "test": "test"}
BATCH = 500  # images at a time
PRODUCTS = 5_000_000  # correlations at a time: 20 MB
ALIKE = 0.99  # correlation that makes a near copy, however alike all images of a dataset are
MAX_PAIRS, MAX_NAME = 10, 50  # copies that the results name, and characters of each name


class Copies(NamedTuple):
    """Which images have an exact copy elsewhere, or only a near one, or one with another label: ``(N,)``, bool.

    ``hashes`` are those of each image and of its copy: ``(N, 2)``, int64.
    """

    exact: Tensor
    near: Tensor
    relabelled: Tensor
    hashes: Tensor


def find_copies(split: Split, *others: Split) -> Copies:
    """Find the images of a split that are in others, too, or that are in two classes.

    A near copy is a picture that was saved, resized or brightened again, for example. It is sought as the image with
    the most similar ``differences``, and is one if the pixels of both, each channel by itself, correlate by more than
    0.9 + 0.1 * the median of these correlations, which is high in a dataset of images that are all alike.
    """
    hashes = [hash_images(part.images, seed=0) for part in (split, *others)]
    exact = torch.isin(hashes[0], torch.cat([hashes[0][:0], *hashes[1:]]))
    near = torch.zeros_like(exact)
    relabelled = _in_two_classes(torch.cat(hashes), torch.cat([part.labels for part in (split, *others)]))[: len(exact)]
    vectors, hashes_of_copies = differences(split.images), hashes[0]
    for other, others_hashes in zip(others, hashes[1:], strict=True):
        theirs = differences(other.images).numpy().T
        parts = torch.split(vectors, max(1, PRODUCTS // max(1, len(other.labels))))
        found = [np.argmax(part.numpy() @ theirs, 1) for part in parts]  # torch takes 2.5 times as long
        nearest = torch.from_numpy(np.concatenate(found))
        pairs = zip(torch.split(split.images, BATCH), torch.split(nearest, BATCH), strict=True)
        alike = torch.cat([_correlation(images, other.images[place]) for images, place in pairs])
        is_near = ~exact & (alike > min(ALIKE, 0.9 + 0.1 * float(alike.median())))
        near |= is_near
        hashes_of_copies = torch.where(is_near, others_hashes[nearest], hashes_of_copies)
        relabelled |= is_near & (split.labels != other.labels[nearest])
    return Copies(exact, near, relabelled, torch.stack((hashes[0], hashes_of_copies), 1))


def differences(images: Tensor) -> Tensor:
    """Return the 8x8 differences in brightness between horizontal neighbours, as unit vectors: ``(N, 64)``.

    Their signs are the difference hash (N. Krawetz, 2013), by which fewer near copies are found.
    """
    size, channels = images.shape[2:]
    identity = torch.eye(size)[None, None]
    rows, columns = (F.interpolate(identity, (n, size), mode="bilinear", antialias=True)[0, 0] for n in (8, 9))
    columns = columns.T.repeat_interleave(channels, 0)  # the brightness is the sum of the channels
    parts = [rows @ part.reshape(len(part), size, -1).float() @ columns for part in torch.split(images, BATCH)]
    return F.normalize(torch.cat(parts).diff(dim=2).flatten(1))


def _correlation(*images: Tensor) -> Tensor:
    first, second = ((part.float() - part.float().mean((1, 2), keepdim=True)).flatten(1) for part in images)
    return F.cosine_similarity(first, second)


def _in_two_classes(hashes: Tensor, labels: Tensor) -> Tensor:
    """Return which images have an exact copy with another label: ``(N,)``, bool."""
    _, group = torch.unique(hashes, return_inverse=True)
    low, high = (labels.scatter_reduce(0, group, labels, how, include_self=False) for how in ("amin", "amax"))
    return (low != high)[group]


def _pairs(hashes: Tensor, source: Any, splits: Iterable[str]) -> list[str]:
    """Return which file is an exact (=) or near (~) copy of which; empty for images that are no files of the user's."""
    files = source.files(splits) if isinstance(source, ImageFolder) else {}
    pairs = []
    for own, of_copy in hashes.tolist() if files else ():
        names = files.get(own, [""])[0], files.get(of_copy, [""])[-1]
        if all(names) and len(set(names)) == 2:
            pairs.append((" = " if own == of_copy else " ~ ").join(map(_short, names)))
    return list(dict.fromkeys(pairs))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= MAX_NAME else f"{name[:20]}...{name[23 - MAX_NAME :]}"


def check_copies(
    name: str, split: Split, others: dict[str, Split | None], source: Any, options: Mapping[str, Any]
) -> tuple[Tensor | slice, str | None]:
    """Say which images of a split are in others, too, or in two classes; ``options`` are those of the data module.

    Return which images are used, a mask ``(N,)``, bool, or all, and what was said: empty for nothing, None where nobody
    looked, because the images are not the user's own and none are to be dropped. Only training images are dropped: all
    runs are judged on the same, and resume with the same.
    """
    drop = options["duplicates"] == "drop" and name == "train"
    if not (drop or options["source"] == "images"):
        return slice(None), None
    known = {other: images for other, images in others.items() if images}
    if drop:
        known["test"] = source.load("test")
    # In 32x32 pixels, whatever the image size.
    found = find_copies(*(Split(small(images), labels) for images, labels in (split, *known.values())))
    sums = (int(part.sum()) for part in (found.exact | found.near, found.exact, found.relabelled))
    num_copies, num_exact, num_relabelled = sums
    where = " or ".join(NAMES[other] for other in known)
    are = "is" if num_copies == 1 else "are"
    texts = [f"{num_copies:,} {are} in {where}, too ({num_exact:,} exactly)"] * (num_copies > 0)
    if num_relabelled:
        names = ", ".join(source.classes[label] for label in sorted(set(split.labels[found.relabelled].tolist()))[:5])
        texts.append(f"{num_relabelled:,} have a copy in another class ({names})")
    text = f"of {len(split.labels):,} {NAMES[name]} images {' and '.join(texts)}" if texts else ""
    if text and name == "train":
        text += ": left out" if drop else "; --data.duplicates drop leaves them out"
    is_used = ~(found.exact | found.near | found.relabelled)
    if text:
        files_of = {name, *known} | ({"train"} if name == "val" and not source.has_val else set())
        pairs = _pairs(found.hashes[~is_used], source, files_of)
        line, text = (", as ".join(filter(None, (text, ", ".join(pairs[:number])))) for number in (2, MAX_PAIRS))
        say(line)
    for label in set(split.labels.tolist()) if drop else ():
        if not is_used[split.labels == label].any():
            raise UserError(f"`duplicates` drop leaves {source.classes[label]} without training images: give keep")
    return is_used if drop else slice(None), text
