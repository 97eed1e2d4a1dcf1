"""What a training shows in the terminal."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from cifar_lit.callbacks.history import History
from cifar_lit.callbacks.progress import EpochLines, NetworkSummary, ProgressBar, count_epoch
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from tests.helpers.trainers import quiet_trainer


def fit(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    data = CIFAR10DataModule(source="images", root=str(root), val_size=15, batch_size=9)
    trainer = quiet_trainer(max_epochs=2, callbacks=list(callbacks), enable_checkpointing=True, **options)
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    return trainer


def bar_and_lines() -> tuple[Callback, ...]:
    """Return the callbacks in the order of ``fit``."""
    throughput = Throughput()
    history = History(throughput)
    return ProgressBar(), throughput, history, EpochLines(history)


LINE = r"epoch {epoch}/2   loss (\d\.\d{{4}})   accuracy train (0\.\d{{4}})  val {accuracy:.4f}   \d+\.\d s"


def test_without_a_terminal_there_is_a_line_per_epoch_and_no_bar(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(tiny_root, *bar_and_lines(), enable_progress_bar=True)
    first, second = (line for line in capsys.readouterr().out.splitlines() if line)
    assert first.startswith("epoch 1/2   loss ")
    found = re.fullmatch(LINE.format(epoch=2, accuracy=float(trainer.callback_metrics["Accuracy/val"])), second)
    assert found, second
    assert float(found[1]) == pytest.approx(float(trainer.callback_metrics["Loss/train"]), abs=1e-4)
    assert float(found[2]) == pytest.approx(float(trainer.callback_metrics["Accuracy/train"]), abs=1e-4)
    assert len(second) < 80


def test_the_accuracy_on_validation_is_that_of_the_epoch_or_none(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny_root, *bar_and_lines(), enable_progress_bar=True, check_val_every_n_epoch=2)
    first, second = (line for line in capsys.readouterr().out.splitlines() if line)
    assert " val " not in first
    assert " val " in second


@pytest.mark.parametrize(("max_epochs", "expected"), [(20, "epoch  3/20"), (3, "epoch 3/3"), (-1, "epoch 3")])
def test_epochs_are_counted_from_one(max_epochs: int, expected: str) -> None:
    trainer: Any = SimpleNamespace(current_epoch=2, max_epochs=max_epochs)
    assert count_epoch(trainer) == expected


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_on_a_terminal_the_lines_stay_above_a_bar_that_is_redrawn(
    term: str, tiny_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        patch.setenv("TERM", term)
        callbacks = bar_and_lines()
    fit(tiny_root, *callbacks, enable_progress_bar=True, accumulate_grad_batches=5)
    out = capsys.readouterr().out
    lines = [line.rpartition("\r")[2] for line in out.split("\n") if "accuracy" in line]
    assert [line.partition("   loss")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "Epoch" not in out  # Lightning's, from 0
    drawn = re.findall(r"epoch (\d)/2: 100%.*? 5/5 .*?loss=(\d\.\d+)", out)
    if term == "dumb":
        assert not drawn
    else:
        assert {epoch for epoch, _ in drawn} == {"1", "2"}
        assert 0.8 < float(drawn[0][1]) < 1.5  # of a batch, near log(3) after one step, also with added gradients


def test_the_summary_lists_the_layers_and_no_metrics(tiny_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tiny_root, NetworkSummary(), enable_model_summary=True)
    table = caplog.text
    for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "pool3", "flatten", "linear1", "linear2"):
        assert f"net.layers.{layer}" in table
    assert "[64, 64, 4, 4]" in table
    for metric in ("train_loss", "val_accuracy", "test_predictions"):
        assert metric not in table
