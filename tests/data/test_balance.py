"""Weights of the classes in the training loss."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from cifar_lit.data.balance import balanced_weights, loss_weights, share_of_process
from cifar_lit.data.mixing import mean_cross_entropy
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from tests.helpers.images import TINY_CLASSES, tiny_files, write_files
from tests.helpers.processes import script
from tests.helpers.trainers import quiet_trainer

BATCH = torch.rand(6, 3, 32, 32), torch.tensor([0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor], ids=lambda make: str(make.__name__))
def test_the_training_loss_is_weighted_and_that_of_validation_is_not(make: Any) -> None:
    model = ImageClassifier(classes=TINY_CLASSES, class_weights=make([1.0, 0.5, 4.0]), label_smoothing=0.0)
    assert model.hparams["class_weights"] == [1.0, 0.5, 4.0]  # plain numbers, which a checkpoint can hold
    losses = F.cross_entropy(model(BATCH[0]), BATCH[1], reduction="none")
    weights = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 4.0])
    assert model.training_step(BATCH, 0).item() == pytest.approx(((losses * weights).sum() / weights.sum()).item())
    model.validation_step(BATCH, 0)
    assert model.val_loss.compute().item() == pytest.approx(losses.mean().item())


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    assert balanced_weights(labels, 3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert balanced_weights(labels, 3)[labels].sum().item() == pytest.approx(10)
    assert balanced_weights(labels, 4).isfinite().all()  # a class without images


def test_balanced_counts_the_training_images_and_a_checkpoint_needs_none(tmp_path: Path) -> None:
    files = {name: data for name, data in tiny_files().items() if not name.startswith("train/dark/1")}
    data = CIFAR10DataModule(source="images", root=str(write_files(tmp_path, files)), val_size=0, batch_size=25)
    model = ImageClassifier(classes=data.classes, class_weights="balanced")
    assert model.class_weights is None
    trainer: Any = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    assert model.class_weights is not None
    assert model.class_weights.tolist() == pytest.approx([49 / 3 / 20, 49 / 3 / 9, 49 / 3 / 20])
    assert not [name for name in model.state_dict() if "weights" in name]
    trainer.save_checkpoint("it.ckpt", weights_only=True)
    again = ImageClassifier.load_from_checkpoint("it.ckpt", weights_only=True)
    assert again.hparams["class_weights"] == "balanced"
    assert again.predict(BATCH[0]).shape == (6, 3)
    trainer = SimpleNamespace(datamodule=None)
    with pytest.raises(UserError, match="`class_weights` balanced counts the images of a CIFAR10DataModule"):
        loss_weights("balanced", data.classes, trainer)


@pytest.mark.parametrize(
    "given",
    [[1, 2], [1, 2, -3], [1, 2, 0], [1, 2, float("nan")], [1, 2, 1e-50], [1, 2, 1e39], "balance", {"a": 1}, 3, [[1]]],
)
def test_other_weights_are_refused_in_one_line(given: Any) -> None:
    with pytest.raises(UserError, match=r"^`class_weights` is .*: must be .*") as error:
        ImageClassifier(classes=TINY_CLASSES, class_weights=given)
    assert "\n" not in str(error.value)


def test_two_processes_have_the_weighted_mean_of_all_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, logits = torch.tensor([1.0, 0.5, 4.0]), torch.rand(6, 3)
    hard, shares = torch.tensor([0, 0, 0, 1, 1, 2]), torch.rand(6, 3).softmax(1)
    for labels in (hard, shares):
        halves = [(logits[part], labels[part]) for part in (slice(3), slice(3, 6))]
        total = (weights[labels] if labels is hard else labels @ weights).sum()
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "is_initialized", lambda: True)
            patch.setattr(distributed, "get_world_size", lambda: 2)
            patch.setattr(distributed, "all_reduce", lambda part, total=total: part.copy_(total))
            parts = [mean_cross_entropy(*half, weights) * share_of_process(half[1], weights) for half in halves]
        assert float(sum(parts)) / 2 == pytest.approx(float(mean_cross_entropy(logits, labels, weights)), rel=1e-6)
    assert share_of_process(hard, weights) == 1


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_with_class_weights_train_as_one_does(tiny_args: list[str]) -> None:
    options = [*tiny_args, "--model.class_weights", "[1,0.1,5]", "--model.lr", "0.05", "--trainer.max_epochs", "1"]
    options += ["--no_report"]
    two = ["--data.batch_size", "4", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    for more in (["--data.batch_size", "8"], [*two, "--trainer.strategy", "ddp"]):
        done = script([*options, *more])
        assert done.code == 0, done.err
    files = sorted(Path("lightning_logs").glob("*/checkpoints/last.ckpt"))
    one, both = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    for name, part in one.items():
        assert torch.allclose(part, both[name], atol=1e-6), name


def test_macro_accuracy_is_the_mean_recall_of_the_classes() -> None:
    model = ImageClassifier(classes=TINY_CLASSES)
    model.validation_step(BATCH, 0)
    with torch.no_grad():
        correct = model(BATCH[0]).argmax(1) == BATCH[1]
    recalls = [correct[BATCH[1] == label].float().mean().item() for label in range(3)]
    assert model.val_macro.compute().item() == pytest.approx(sum(recalls) / 3)
