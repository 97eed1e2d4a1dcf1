"""Scoring: one pass over the images, and results that agree with each other."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from cifar_lit import CIFAR10DataModule, ImageClassifier
from cifar_lit.errors import UserError
from cifar_lit.evaluation.score import describe, score
from cifar_lit.metrics import wilson_interval

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def datamodule(tiny_root: Path) -> CIFAR10DataModule:
    return CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=8)


@pytest.fixture
def model(datamodule: CIFAR10DataModule) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(classes=datamodule.classes, tta="mirror")


def a_trainer(**options: object) -> Trainer:
    return Trainer(accelerator="cpu", **{**QUIET, **options})  # type: ignore[arg-type]


def test_the_metrics_are_those_of_the_predictions(model: ImageClassifier, datamodule: CIFAR10DataModule) -> None:
    metrics = score(a_trainer(), model, datamodule)
    assert datamodule.test is not None
    assert datamodule.val is not None
    for split, images, labels in (("test", *datamodule.test), ("val", *datamodule.val)):
        probabilities = model.predict(images.permute(0, 3, 1, 2))
        accuracy = (probabilities.argmax(1) == labels).double().mean()
        assert metrics[f"Accuracy/{split}"] == pytest.approx(float(accuracy))
        loss = -probabilities.log()[torch.arange(len(labels)), labels].mean()
        assert metrics[f"Loss/{split}"] == pytest.approx(float(loss), rel=1e-5)
    tta = model.predict(datamodule.test.images.permute(0, 3, 1, 2), tta="mirror").argmax(1)
    assert metrics["TTAAccuracy/test"] == pytest.approx(float((tta == datamodule.test.labels).double().mean()))
    results = describe(model, datamodule, metrics, seed=7)
    assert (results.num_train, results.num_val, results.num_test, results.num_classes) == (48, 12, 24, 3)
    assert (results.network, results.num_parameters, results.seed) == ("TutorialCNN", 145_578 - 7 * 65, 7)
    assert results.metrics == metrics


def test_the_memory_of_a_training_is_returned_before_images_are_read(
    model: ImageClassifier, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr("cifar_lit.evaluation.score.return_freed_memory", lambda: done.append("returned"))
    setup = datamodule.setup

    def noted_setup(stage: str) -> None:
        done.append(stage)
        setup(stage)

    monkeypatch.setattr(datamodule, "setup", noted_setup)
    score(a_trainer(), model, datamodule)
    assert done == ["returned", "validate", "test"]


def test_each_image_is_seen_once(
    model: ImageClassifier, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.zeros(len(images), 3)

    model.check_network()
    monkeypatch.setattr(model, "check_network", lambda: None)
    monkeypatch.setattr(model.net, "forward", forward)
    model.hparams["tta"] = "none"
    score(a_trainer(), model, datamodule, splits=("test",))
    assert sum(seen) == 24


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
@pytest.mark.parametrize(
    ("precision", "num_batches"), [("32-true", 3), ("bf16-mixed", 3), ("32-true", 1.0), ("32-true", 0.1)]
)
def test_the_results_describe_what_was_scored(
    precision: str,
    num_batches: int | float,
    model: ImageClassifier,
    datamodule: CIFAR10DataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 5})
    trainer = a_trainer(limit_test_batches=num_batches, limit_val_batches=2, precision=precision)
    results = describe(model, datamodule, score(trainer, model, datamodule))
    assert results.num_val == 10
    assert results.num_test == {3: 15, 1.0: 24, 0.1: 5}[num_batches]
    confusion = torch.tensor(results.metrics["Confusion/test"])
    num_correct = int(confusion.diag().sum())
    assert int(confusion.sum()) == results.num_test
    assert results.metrics["Accuracy/test"] == num_correct / results.num_test
    assert results.metrics["AccuracyInterval/test"] == list(wilson_interval(num_correct, results.num_test))


def test_validation_alone_reads_no_test_image(
    model: ImageClassifier, datamodule: CIFAR10DataModule, tiny_root: Path
) -> None:
    metrics = score(a_trainer(), model, datamodule, splits=("val",))
    results = describe(model, datamodule, metrics)
    assert set(metrics) == {"Accuracy/val", "Loss/val", "MacroAccuracy/val"}
    assert datamodule.test is None
    assert (results.num_val, results.num_test) == (12, 0)


def test_without_validation_there_are_no_validation_metrics(tiny_root: Path, model: ImageClassifier) -> None:
    datamodule = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0)
    results = describe(model, datamodule, score(a_trainer(), model, datamodule))
    assert (results.num_val, results.num_test) == (0, 24)
    assert results.metrics["Accuracy/val"] is results.metrics["Loss/val"] is None
    with pytest.raises(UserError, match="`val_size` is 0: there are no validation images to score"):
        score(a_trainer(), model, datamodule, splits=("val",))


def test_no_test_image_no_test_metrics(model: ImageClassifier, datamodule: CIFAR10DataModule) -> None:
    score(a_trainer(), model, datamodule)
    results = describe(model, datamodule, score(a_trainer(limit_test_batches=0), model, datamodule))
    assert results.num_test == 0  # and not those of the test before
    assert not any("/test" in name for name in results.metrics)
