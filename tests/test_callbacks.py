"""The observers: what they measure and print."""

import sys
import time
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, Trainer

from cifar_lit.callbacks import NetworkSummary, ProgressBar, Speed, draw_confusion
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier


class Slow(Callback):
    """Takes its time in validation and in training."""

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.4)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.02)


def fit(root: Any, callbacks: list[Callback], **options: Any) -> Trainer:
    data = CIFAR10DataModule(source="images", root=str(root), val_size=15, batch_size=9)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **{"enable_model_summary": False, **options},
    )
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    return trainer


def test_speed_counts_training_images_over_the_time_outside_validation(tiny_root: Any) -> None:
    speed = Speed()
    started = time.perf_counter()
    trainer = fit(tiny_root, [speed, Slow()], enable_progress_bar=False)
    elapsed = time.perf_counter() - started
    measured = speed.images_per_second
    trainer.validate(datamodule=trainer.datamodule, model=trainer.lightning_module, verbose=False)  # type: ignore[attr-defined]
    assert speed.images_per_second == measured  # scoring afterwards changes nothing
    # Two epochs of 45 images in 5 batches; the validation of each takes 0.4 s at least.
    assert 0.8 + 10 * 0.02 < speed.train_seconds < elapsed
    training_seconds = 90 / speed.images_per_second
    assert 10 * 0.02 < training_seconds < speed.train_seconds - 0.8


def test_without_a_terminal_there_is_a_line_per_epoch(tiny_root: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(tiny_root, [ProgressBar()])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    accuracy = float(trainer.callback_metrics["Accuracy/val"])
    assert lines[1].startswith("epoch 2/2  loss ")
    assert lines[1].endswith(f"Accuracy/val {accuracy:.4f}")
    assert 0 < float(lines[1].split()[3]) < 2


def test_on_a_terminal_there_is_a_bar_with_the_loss(
    tiny_root: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = ProgressBar()
    monkeypatch.undo()
    trainer = fit(tiny_root, [bar])
    out = capsys.readouterr().out
    assert "5/5" in out
    assert "loss=" in out
    assert f"Accuracy/val={float(trainer.callback_metrics['Accuracy/val']):.4f}" in out
    assert not any(line.startswith("epoch ") for line in out.splitlines())


def test_the_summary_lists_the_layers_and_no_metrics(tiny_root: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    fit(tiny_root, [NetworkSummary()], enable_progress_bar=False, enable_model_summary=True)
    table = caplog.text
    for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "pool3", "flatten", "linear1", "linear2"):
        assert f"net.layers.{layer}" in table
    assert "[64, 64, 4, 4]" in table
    assert "test_confusion" not in table


def test_the_confusion_matrix_shows_every_count_in_its_place() -> None:
    counts = np.array([[9, 1, 0], [2, 6, 2], [0, 0, 10]])
    axes = draw_confusion(counts, ["a", "b", "c"]).axes[0]
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        assert int(text.get_text()) == counts[row, column]
    assert len(axes.texts) == 9
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    shares = axes.images[0].get_array()
    assert shares is not None
    assert np.allclose(shares[1], [0.2, 0.6, 0.2])


def test_a_confusion_matrix_of_many_classes_or_with_an_empty_row_is_drawn_too() -> None:
    counts = np.eye(60, dtype=np.int64)
    counts[7] = 0
    figure = draw_confusion(counts, [str(i) for i in range(60)])
    assert max(figure.get_size_inches()) <= 20
    assert not figure.axes[0].texts
    shares = figure.axes[0].images[0].get_array()
    assert shares is not None
    assert shares[7].sum() == 0
