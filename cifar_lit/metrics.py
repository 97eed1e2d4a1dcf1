"""Metrics: predictions collected once, mean loss, confidence intervals, paired tests."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
)
from torchmetrics.utilities import dim_zero_cat

Z95 = 1.959964
"""Standard deviations on each side of a 95 % interval of the normal distribution."""
NUM_BINS = 15
"""Bins of equal width of the expected calibration error."""

CLASS_METRICS: dict[str, Callable[..., Tensor]] = {
    "ClassAccuracy": multiclass_accuracy,
    "Precision": multiclass_precision,
    "Recall": multiclass_accuracy,  # of a class, recall and accuracy are the same
    "F1": multiclass_f1_score,
}


class ExactMetric(Metric):
    """Base class: the states keep their dtypes, whatever the precision of the module that holds the metric.

    The Trainer converts a module by ``Module.to(dtype)``, which torchmetrics lets pass, unlike ``Module.half``.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the states to the device that ``fn`` moves to."""

        def move(state: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=state.device)).device
            lacks_float64 = device.type == "mps" and state.dtype == torch.float64
            return state.to(device, torch.float32 if lacks_float64 else state.dtype)

        return super()._apply(move, exclude_state)


class MacroAccuracy(MulticlassAccuracy):
    """Mean of the accuracies of the classes that have images; torchmetrics' has a 0 for others that are predicted."""

    def compute(self) -> Tensor:  # noqa: D102
        found, _, _, missed = self._final_state()
        return (found / (found + missed))[found + missed > 0].mean()


class MeanLoss(ExactMetric):
    """Mean over images of a loss that is given as the mean over a batch, summed in float64.

    torchmetrics' ``MeanMetric`` checks for NaN, which synchronises with the device at every step, or, told not to,
    gives each batch the same weight (torchmetrics #3434).
    """

    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, num_images: int) -> None:
        """Add a batch of ``num_images`` images, whose mean loss is ``loss``, a scalar."""
        self.total += loss.to(self.total.dtype) * num_images
        self.num_images += num_images

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.num_images


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images and C classes, from one pass over them. All test metrics come from here.

    Attributes:
        log_probs: ``(N, C)``, float32: the log-probabilities.
        labels: ``(N,)``, int64: the true classes.
        index: ``(N,)``, int64: the position of each image in its data set.
        tta_log_probs: ``(N, C)``: the same with test-time augmentation; None without.
    """

    log_probs: Tensor
    labels: Tensor
    index: Tensor
    tta_log_probs: Tensor | None = None

    @property
    def predicted(self) -> Tensor:
        """``(N,)``, int64: the predicted classes."""
        return self.log_probs.argmax(1)

    @property
    def correct(self) -> Tensor:
        """``(N,)``, bool: whether each image is classified correctly."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> Tensor:
        """``(N,)``: the probability of the predicted class."""
        return self.log_probs.amax(1).exp()

    def most_confident_errors(self, predicted: int | None = None) -> Tensor:
        """Return the rows of wrong predictions (of one class, if given), the most confident first."""
        wrong = ~self.correct if predicted is None else ~self.correct & (self.predicted == predicted)
        rows = wrong.nonzero().squeeze(1)
        return rows[self.confidence[rows].argsort(descending=True, stable=True)]

    def metrics(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of a test, all of the same images.

        ``Accuracy/test`` with its 95 % Wilson interval ``AccuracyInterval/test``, ``MacroAccuracy/test``,
        ``Top5Accuracy/test`` (for more than five classes), ``TTAAccuracy/test`` (with test-time augmentation),
        ``Loss/test``, ``CalibrationError/test`` (expected calibration error, 15 bins), for each class
        ``ClassAccuracy/test/NAME``, ``Precision/test/NAME``, ``Recall/test/NAME`` and ``F1/test/NAME``, and
        ``Confusion/test``: C rows of counts, one per true class, with a column per predicted class.
        """
        predicted, labels, size = self.predicted, self.labels, len(classes)
        num_correct = int(self.correct.sum())
        values: dict[str, Any] = {
            "Loss/test": float(F.nll_loss(self.log_probs.double(), labels)),
            "Accuracy/test": num_correct / len(labels),
            "AccuracyInterval/test": list(wilson_interval(num_correct, len(labels))),
            "MacroAccuracy/test": float(MacroAccuracy(size)(predicted, labels)),
            "CalibrationError/test": calibration_error(self.confidence, self.correct),
            "Confusion/test": multiclass_confusion_matrix(predicted, labels, size).tolist(),
        }
        if size > 5:
            in_top5 = (self.log_probs.topk(5).indices == labels[:, None]).any(1)
            values["Top5Accuracy/test"] = float(in_top5.double().mean())
        if self.tta_log_probs is not None:
            values["TTAAccuracy/test"] = float((self.tta_log_probs.argmax(1) == labels).double().mean())
        for name, metric in CLASS_METRICS.items():
            of_classes = metric(predicted, labels, size, average="none")
            values |= {f"{name}/test/{label}": float(v) for label, v in zip(classes, of_classes, strict=True)}
        return values


class PredictionCollector(ExactMetric):
    """Collects the predictions of all batches, over all processes."""

    log_probs: list[Tensor]
    tta_log_probs: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("log_probs", "tta_log_probs", "labels", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, index: Tensor, tta_logits: Tensor | None = None) -> None:
        """Add a batch: logits ``(n, C)``, labels ``(n,)``, positions ``(n,)`` and, with TTA, its logits."""
        self.log_probs.append(logits.float().log_softmax(1))
        self.labels.append(labels)
        self.index.append(index)
        if tta_logits is not None:
            self.tta_log_probs.append(tta_logits.float().log_softmax(1))

    def compute(self) -> Tensor:
        """Return the accuracy, a scalar."""
        return (dim_zero_cat(self.log_probs).argmax(1) == dim_zero_cat(self.labels)).float().mean()

    def predictions(self, *, with_tta: bool = False) -> Predictions:
        """Return the predictions of all processes, in the order of the data set, on the CPU."""
        if not self.labels:  # a process without images takes part in the exchange all the same
            logits = torch.zeros(0, self.num_classes, device=self.device)
            index = torch.zeros(0, dtype=torch.int64, device=self.device)
            self.update(logits, index, index, logits if with_tta else None)
        with self.sync_context():
            index = dim_zero_cat(self.index).cpu()
            order = index.argsort(stable=True)
            log_probs, labels = (dim_zero_cat(part).cpu()[order] for part in (self.log_probs, self.labels))
            has_tta = len(self.tta_log_probs) > 0
            tta_log_probs = dim_zero_cat(self.tta_log_probs).cpu()[order] if has_tta else None
        return Predictions(log_probs, labels, index[order], tta_log_probs)


def calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> float:
    """Compute the expected calibration error (arXiv 1706.04599, equation 3).

    torchmetrics 1.9 puts confidences of exactly 1 into a bin of their own (torchmetrics #3510).

    Args:
        confidence: ``(N,)``, in [0, 1]: the probability of each predicted class.
        correct: ``(N,)``, bool: whether each prediction is correct.
        num_bins: Bins of equal width. Each contains its lower edge, and the last one both edges.
    """
    confidence = confidence.double()
    bins = (confidence * num_bins).long().clamp(0, num_bins - 1)  # 0 for NaN, which the result shows
    gaps = confidence.new_zeros(num_bins).index_add_(0, bins, confidence - correct.double())
    return float(gaps.abs().sum() / len(confidence))


def wilson_interval(num_correct: int, num_images: int, z: float = Z95) -> tuple[float, float]:
    """Return both ends of the Wilson score interval of an accuracy (E. B. Wilson, 1927); by default of 95 %."""
    share, scale = num_correct / num_images, 1 + z * z / num_images
    middle = share + z * z / (2 * num_images)
    width = z * math.sqrt(share * (1 - share) / num_images + z * z / (4 * num_images * num_images))
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)  # not below or above, by rounding


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test (Q. McNemar, 1947).

    Args:
        only_first: Images that only the first model classifies correctly.
        only_second: Images that only the second model classifies correctly.
    """
    num_different = only_first + only_second
    tail = sum(math.comb(num_different, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << num_different))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests, in the same order (S. Holm, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(p_values) - rank) * p_values[place]) for rank, place in enumerate(order))
    return [adjusted for _, adjusted in sorted(zip(order, itertools.accumulate(scaled, max), strict=True))]


def paired_difference(only_first: int, only_second: int, num_images: int) -> tuple[float, float]:
    """Estimate the difference of two accuracies on the same images, with Wald's interval for pairs.

    Args:
        only_first: Images that only the first model classifies correctly.
        only_second: Images that only the second model classifies correctly.
        num_images: All images.

    Returns:
        The second accuracy minus the first, and half the width of the 95 % interval.
    """
    difference = (only_second - only_first) / num_images
    variance = (only_first + only_second) / num_images - difference**2
    return difference, Z95 * math.sqrt(variance / num_images)
