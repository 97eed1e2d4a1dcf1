"""Metrics: values counted by hand, reference implementations, published formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_lit.metrics import (
    MacroAccuracy,
    MeanLoss,
    PredictionCollector,
    Predictions,
    calibration_error,
    holm,
    mcnemar,
    paired_difference,
    wilson_interval,
)

CLASSES = ["cat", "dog", "ship"]
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
CONFIDENCE = torch.tensor([0.9, 0.8, 0.95, 0.7, 0.9, 0.6, 0.99, 0.5, 0.8, 0.6])


@pytest.fixture
def predictions() -> Predictions:
    """Return ten predictions, of which seven are correct."""
    probabilities = ((1 - CONFIDENCE) / 2)[:, None].repeat(1, 3)
    probabilities[torch.arange(10), PREDICTED] = CONFIDENCE
    return Predictions(probabilities.log(), LABELS, torch.arange(10))


def random_logits(num_images: int, num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_images,), generator=generator)


def collect(logits: Tensor, labels: Tensor, **options: Any) -> Predictions:
    collector = PredictionCollector(logits.shape[1])
    collector.update(logits, labels, torch.arange(len(labels)), **options)
    return collector.predictions()


def test_a_class_without_images_is_not_in_the_mean_of_the_classes() -> None:
    logits, labels = torch.eye(3)[[0, 2, 1, 1]], torch.tensor([0, 0, 1, 1])
    metric = MacroAccuracy(3)
    metric.update(logits, labels)
    assert metric.compute() == 0.75
    assert collect(logits, labels).metrics(CLASSES)["MacroAccuracy/test"] == 0.75


def test_the_metrics_are_those_counted_by_hand(predictions: Predictions) -> None:
    metrics = predictions.metrics(CLASSES)
    assert metrics["Confusion/test"] == [[3, 1, 0], [0, 2, 1], [1, 0, 2]]
    assert metrics["Accuracy/test"] == 0.7
    assert metrics["MacroAccuracy/test"] == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)
    assert metrics["AccuracyInterval/test"] == list(wilson_interval(7, 10))
    for name, precision, recall in (("cat", 3 / 4, 3 / 4), ("dog", 2 / 3, 2 / 3), ("ship", 2 / 3, 2 / 3)):
        assert metrics[f"ClassAccuracy/test/{name}"] == metrics[f"Recall/test/{name}"] == pytest.approx(recall)
        assert metrics[f"Precision/test/{name}"] == pytest.approx(precision)
        assert metrics[f"F1/test/{name}"] == pytest.approx(2 * precision * recall / (precision + recall))
    bins: dict[int, list[tuple[float, float]]] = {}
    for confidence, correct in zip(CONFIDENCE.tolist(), (PREDICTED == LABELS).tolist(), strict=True):
        bins.setdefault(int(confidence * 15), []).append((confidence, correct))
    expected = sum(abs(sum(c for c, _ in some) - sum(r for _, r in some)) for some in bins.values()) / 10
    assert metrics["CalibrationError/test"] == pytest.approx(expected, abs=1e-6)
    assert not {"TTAAccuracy/test", "Top5Accuracy/test"} & metrics.keys()


def test_the_loss_is_the_cross_entropy_and_top_5_counts_the_five_largest() -> None:
    logits, labels = random_logits(500, 10)
    metrics = collect(logits, labels).metrics([str(i) for i in range(10)])
    assert metrics["Loss/test"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    in_top_5 = (logits.topk(5).indices == labels[:, None]).any(1)
    assert metrics["Top5Accuracy/test"] == pytest.approx(float(in_top_5.float().mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_metrics_cannot_contradict_each_other_in_any_precision(dtype: torch.dtype) -> None:
    logits, labels = random_logits(5000, 10)
    logits = (logits / 30).to(dtype)  # bfloat16 has equal logits here: the tie is broken once
    metrics = collect(logits, labels).metrics([str(i) for i in range(10)])
    confusion = torch.tensor(metrics["Confusion/test"])
    num_correct = int(confusion.diag().sum())
    assert int(confusion.sum()) == 5000
    assert metrics["Accuracy/test"] == num_correct / 5000
    assert metrics["AccuracyInterval/test"] == list(wilson_interval(num_correct, 5000))
    recall = confusion.diag() / confusion.sum(1)
    assert [metrics[f"Recall/test/{i}"] for i in range(10)] == pytest.approx(recall.tolist())
    assert metrics["MacroAccuracy/test"] == pytest.approx(float(recall.mean()))


def test_test_time_augmentation_has_its_own_accuracy() -> None:
    logits, labels = random_logits(200, 4)
    perfect = F.one_hot(labels, 4).float()
    metrics = collect(logits, labels, tta_logits=perfect).metrics(list("abcd"))
    assert metrics["TTAAccuracy/test"] == 1
    assert metrics["Accuracy/test"] == collect(logits, labels).metrics(list("abcd"))["Accuracy/test"] < 1


def test_the_most_confident_errors_come_first(predictions: Predictions) -> None:
    assert predictions.most_confident_errors().tolist() == [6, 3, 9]
    assert predictions.most_confident_errors(predicted=0).tolist() == [9]
    assert predictions.correct.sum() == 7
    assert predictions.confidence[6] == pytest.approx(0.99)
    perfect = Predictions(predictions.log_probs, predictions.predicted, predictions.index)
    assert perfect.most_confident_errors().tolist() == []


def test_predictions_come_back_in_the_order_of_the_data_whatever_the_batches_were() -> None:
    logits, labels = random_logits(50, 3)
    expected = collect(logits, labels, tta_logits=-logits)
    collector = PredictionCollector(logits.shape[1])
    for index in torch.split(torch.randperm(50, generator=torch.Generator().manual_seed(1)), 7):
        collector.update(logits[index], labels[index], index, -logits[index])
    found = collector.predictions()
    for name in ("log_probs", "labels", "index", "tta_log_probs"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert collector.compute() == expected.correct.float().mean()


def test_the_mean_loss_weights_batches_by_their_images() -> None:
    losses = torch.rand(23, generator=torch.Generator().manual_seed(0))
    metric = MeanLoss()
    for batch in torch.split(losses, 5):
        metric.update(batch.mean(), len(batch))
    assert float(metric.compute()) == pytest.approx(float(losses.mean()))
    metric.update(torch.tensor(torch.nan), 1)
    assert metric.compute().isnan()  # a diverging training shows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_mean_loss_is_exact_in_a_module_of_any_precision(dtype: torch.dtype) -> None:
    module = torch.nn.ModuleList([MeanLoss()]).to(dtype)
    metric = module[0]
    assert isinstance(metric, MeanLoss)
    for _ in range(2):  # again after a reset
        for _ in range(704):
            metric.update(torch.tensor(2.3), 64)  # in bfloat16 this gave 4.0, in float16 infinity
        assert float(metric.compute()) == pytest.approx(2.3)
        assert int(metric.num_images) == 704 * 64
        metric.reset()


def test_the_mean_loss_counts_beyond_the_whole_numbers_of_float32() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(1.0), 2**24)
    for _ in range(1000):
        metric.update(torch.tensor(3.0), 1)
    assert int(metric.num_images) == 2**24 + 1000
    assert float(metric.compute()) == pytest.approx(1 + 2000 / (2**24 + 1000), rel=1e-12)


def test_the_states_of_metrics_move_and_keep_their_dtypes() -> None:
    collector = PredictionCollector(3)
    collector.update(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1]))
    module = torch.nn.ModuleList([MeanLoss(), collector]).bfloat16().half().to(torch.float16)
    assert [part.dtype for part in collector.log_probs + collector.labels] == [torch.float32, torch.int64]
    moved = module.to(torch.device("meta"))[0]
    assert isinstance(moved, MeanLoss)
    assert (moved.total.device.type, moved.total.dtype) == ("meta", torch.float64)


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([1.0, 1.0, 0.95, 0.95], [1, 0, 1, 1], (3.9 - 3) / 4),  # all in the last bin
        ([1.0, 1.0], [1, 1], 0.0),
        ([0.0, 1.0], [0, 0], 0.5),
        ([0.5, 0.5, 0.9], [1, 0, 1], (0.0 + 0.1) / 3),
        ([0.2, 0.2], [1, 1], 0.8),  # 3 / 15, the lower edge of a bin
    ],
)
def test_the_calibration_error_is_that_counted_by_hand(
    confidence: list[float], correct: list[int], expected: float
) -> None:
    given = calibration_error(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool))
    assert given == pytest.approx(expected, abs=1e-7)


def test_the_calibration_error_is_that_of_torchmetrics_below_one() -> None:
    probabilities, labels = random_logits(5000, 10)
    confidence, predicted = probabilities.softmax(1).max(1)
    for num_bins in (1, 10, 15):
        expected = multiclass_calibration_error(probabilities.softmax(1), labels, 10, n_bins=num_bins)
        given = calibration_error(confidence, predicted == labels, num_bins)
        assert given == pytest.approx(float(expected), abs=1e-5)
    assert calibration_error(torch.tensor([torch.nan, 0.5]), torch.tensor([True, True])) != 0.25


def test_intervals_and_p_values_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for num_correct, num_images in ((0, 10), (10, 10), (7, 10), (4321, 5000), (9999, 10000)):
        expected = stats.binomtest(num_correct, num_images).proportion_ci(method="wilson")
        assert wilson_interval(num_correct, num_images) == pytest.approx((expected.low, expected.high), abs=1e-6)
    for num_images in range(1, 100):
        assert 0 <= wilson_interval(0, num_images)[0] < 1e-12
        assert 1 >= wilson_interval(num_images, num_images)[1] > 1 - 1e-12
    for only_first, only_second in ((0, 1), (3, 3), (2, 9), (40, 71), (500, 400)):
        p = stats.binomtest(only_first, only_first + only_second).pvalue
        assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 9, 2 * 11 / 1024),
        (9, 1, 2 * 11 / 1024),
        (59, 121, 4.434e-06),  # R: binom.test(59, 180)
        (1022, 265, 4.5e-105),
    ],
)
def test_mcnemars_p_is_that_of_the_binomial_test(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-2)


def test_holm_is_that_of_a_table() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_the_interval_of_a_difference_contains_it_as_often_as_it_says() -> None:
    samples = torch.rand(2000, 400, generator=torch.Generator().manual_seed(0))
    only_first, only_second = (samples < 0.1).sum(1), ((samples >= 0.1) & (samples < 0.25)).sum(1)
    num_contained = 0
    for first, second in zip(only_first.tolist(), only_second.tolist(), strict=True):
        difference, half = paired_difference(first, second, 400)
        num_contained += abs(difference - 0.05) <= half
    assert num_contained / 2000 == pytest.approx(0.95, abs=0.015)
