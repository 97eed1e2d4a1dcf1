"""What a training shows in the terminal."""

import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from cifar_lit.callbacks.progress import NetworkSummary, ProgressBar
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from tests.helpers.trainers import quiet_trainer


def fit(root: Path, callback: Callback, **options: Any) -> Trainer:
    data = CIFAR10DataModule(source="images", root=str(root), val_size=15, batch_size=9)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], **options)
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    return trainer


def test_without_a_terminal_there_is_a_line_per_epoch(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(tiny_root, ProgressBar(), enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    accuracy = float(trainer.callback_metrics["Accuracy/val"])
    assert lines[1].startswith("epoch 2/2  loss ")
    assert lines[1].endswith(f"Accuracy/val {accuracy:.4f}")
    assert 0 < float(lines[1].split()[3]) < 2


def test_the_loss_is_that_of_a_batch_also_with_accumulated_gradients(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny_root, ProgressBar(), enable_progress_bar=True, accumulate_grad_batches=5)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert 0.8 < float(lines[0].split()[3]) < 1.5  # near log(3) after one step


def test_on_a_terminal_there_is_a_bar_with_the_loss(
    tiny_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = ProgressBar()
    monkeypatch.undo()
    trainer = fit(tiny_root, bar, enable_progress_bar=True)
    out = capsys.readouterr().out
    assert "5/5" in out
    assert "loss=" in out
    assert f"Accuracy/val={float(trainer.callback_metrics['Accuracy/val']):.4f}" in out
    assert not any(line.startswith("epoch ") for line in out.splitlines())


def test_the_summary_lists_the_layers_and_no_metrics(tiny_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tiny_root, NetworkSummary(), enable_model_summary=True)
    table = caplog.text
    for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "pool3", "flatten", "linear1", "linear2"):
        assert f"net.layers.{layer}" in table
    assert "[64, 64, 4, 4]" in table
    for metric in ("train_loss", "val_accuracy", "test_predictions"):
        assert metric not in table
