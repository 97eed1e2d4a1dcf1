"""What a test says of a model, in words: its headline, its classes from the worst on, its most frequent confusions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cifar_lit.results import Results

CLASS_ROWS = ("Recall", "Precision", "F1")


class ClassRow(NamedTuple):
    name: str
    recall: float | None
    precision: float | None
    f1: float | None
    num_images: int | None


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another; ``true`` and ``predicted`` are labels."""

    true: int
    predicted: int
    count: int
    num_images: int

    def text(self, classes: Sequence[str]) -> str:
        """Return ``cat taken for dog 71 times (14 % of its 500 images)``."""
        times = "once" if self.count == 1 else f"{self.count:,} times"
        of = f"{percent(self.count / self.num_images, 0)} of its {counted(self.num_images, 'image')}"
        return f"{classes[self.true]} taken for {classes[self.predicted]} {times} ({of})"


def percent(share: float, digits: int = 1) -> str:
    """Return ``93.9 %``; a share that is not 0 or 1 never reads as if it were."""
    text = f"{100 * share:.{digits}f}"
    if (text == f"{0:.{digits}f}" and share > 0) or (text == f"{100:.{digits}f}" and share < 1):
        return percent(share, digits + 1) if digits < 4 else f"{text} %"
    return f"{text} %"


def counted(number: int, name: str) -> str:
    """Return ``1 epoch`` or ``5,000 images``."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def headline(results: Results) -> str:
    """Return what was trained on what, how good it is, and its best and worst class; what is not known is left out."""
    length = f" for {counted(results.epochs, 'epoch')}" if results.epochs else ""
    data = f" on {results.title}" if results.title else ""
    size = f" ({counted(results.num_train, 'image')})" if results.num_train else ""
    sentences = [f"{results.network} was trained{length}{data}{size}."] if length or data or size else []
    return " ".join([*sentences, *accuracy_sentence(results), *_extremes(results)])


def accuracy_sentence(results: Results) -> list[str]:
    """Return the accuracy on test with its interval, or else that on validation, as a sentence; [] without one."""
    for split, name, number, total in (
        ("test", "test", results.num_test, results.total_test),
        ("val", "validation", results.num_val, results.total_val),
    ):
        accuracy, interval = (results.metrics.get(f"{metric}/{split}") for metric in ("Accuracy", "AccuracyInterval"))
        if accuracy is None or not number:
            continue
        images = f"{number:,} of the {total:,} {name} images" if total else counted(number, f"{name} image")
        ends = f" (95 % interval: {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)" if interval else ""
        untested = "" if split == "test" else "; it was not tested"
        return [f"It classifies {percent(accuracy)} of {images} correctly{ends}{untested}."]
    return []


def _extremes(results: Results) -> list[str]:
    shares = {row.name: row.recall for row in class_rows(results) if row.recall is not None and row.num_images != 0}
    if len(set(shares.values())) < 2:
        return []
    parts = []
    for title, share in (("Best class", max(shares.values())), ("worst", min(shares.values()))):
        name, *others = [name for name, value in shares.items() if value == share]
        more = f" and {counted(len(others), 'other')}" if others else ""
        parts.append(f"{title}: {name}{more} ({percent(share)})")
    return [f"{'; '.join(parts)}."]


def class_rows(results: Results) -> list[ClassRow]:
    """Return the recall, precision, F1 and test images of each class: the worst first, those without images last."""
    recall, precision, f1 = (results.of_classes(name) for name in CLASS_ROWS)
    numbers: list[int | None] = [sum(row) for row in results.metrics.get("Confusion/test") or []]
    numbers = numbers or [None] * len(recall)
    rows = [
        ClassRow(name, value, precision.get(name), f1.get(name), number)
        for (name, value), number in zip(recall.items(), numbers, strict=False)
    ]
    return sorted(rows, key=lambda row: (row.num_images == 0, 2 if row.recall is None else row.recall))


def confusions(matrix: ArrayLike, limit: int) -> list[Confusion]:
    """Return the most frequent confusions of a confusion matrix, ``(C, C)``; at most ``limit``."""
    counts = np.array(matrix, dtype=np.int64)
    num_images = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = ((int(place) // len(counts), int(place) % len(counts)) for place in order)
    return [
        Confusion(true, predicted, int(counts[true, predicted]), int(num_images[true]))
        for true, predicted in pairs
        if counts[true, predicted] > 0
    ]


def most_confused(matrix: ArrayLike, limit: int) -> list[int]:
    """Return the labels of at most ``limit`` classes, those in the most errors, in the order of the labels."""
    counts = np.array(matrix, dtype=np.int64)
    np.fill_diagonal(counts, 0)
    errors = counts.sum(0) + counts.sum(1)
    return sorted(np.argsort(-errors, kind="stable")[:limit].tolist())
