"""The figures of a run: taken, written down, shown."""

import json
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier

Figures = dict[str, float]


def evaluate(
    trainer: Trainer,
    model: ImageClassifier,
    datamodule: CIFAR10DataModule,
    checkpoint: str | None,
    *,
    splits: tuple[str, ...] = ("val", "test"),
) -> Figures:
    """Score a checkpoint on the validation images, where there are any, and on the test images.

    Args:
        trainer: What runs it.
        model: The module that the weights are loaded into.
        datamodule: The data.
        checkpoint: The checkpoint's path; None for the weights that the module has.
        splits: What to score it on: ``val``, ``test`` or both.

    Returns:
        What the module logs: ``Accuracy/val``, ``Loss/test``, ...

    Raises:
        ValueError: If validation alone is asked for and there is none.
    """
    figures: Figures = {}
    if splits == ("val",) and not datamodule.has_val:
        raise ValueError("--data.val_size is 0: there are no validation images to score; use test")
    for split, score in (("val", trainer.validate), ("test", trainer.test)):
        if split in splits and (split == "test" or datamodule.has_val):
            score(model, datamodule=datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)
            figures.update((name, float(value)) for name, value in trainer.callback_metrics.items() if name != "step")
    return figures


def describe_data(datamodule: CIFAR10DataModule) -> dict[str, Any]:
    """Say what data the figures come from.

    Args:
        datamodule: The data, loaded.

    Returns:
        ``source``, ``title``, ``num_train``, ``num_val``, ``num_test`` (0 for what was not loaded) and ``num_classes``.
    """
    sizes = {
        f"num_{name}": len(split.labels) if split else 0
        for name, split in (("train", datamodule.train), ("val", datamodule.val), ("test", datamodule.test))
    }
    return {
        "source": datamodule.hparams["source"],
        "title": datamodule.source.title,
        **sizes,
        "num_classes": len(datamodule.classes),
    }


def describe_model(model: ImageClassifier) -> dict[str, Any]:
    """Say which network it is.

    Args:
        model: The module.

    Returns:
        ``network``, the class's name, and ``num_parameters``.
    """
    return {
        "network": type(model.net).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def add_report(
    results: dict[str, Any],
    model: ImageClassifier,
    datamodule: CIFAR10DataModule,
    folder: Path,
    logger: TensorBoardLogger | None = None,
) -> None:
    """Score the test images once more, image by image, and write ``report.html`` into a run's folder.

    Args:
        results: What is known of the run; the figures of the report are added.
        model: The model that was tested, which is in evaluation mode after that.
        datamodule: The data, with its test images loaded.
        folder: The run's folder.
        logger: Gets the same pictures, where there is one.
    """
    from cifar_lit import report  # matplotlib, which only this needs

    assert datamodule.test is not None
    images, labels = datamodule.test.images, datamodule.test.labels
    answers = report.Answers(model.net, images, labels, model.eval().predict(images), model.classes)
    results |= report.score(answers)
    report.write_report(folder / "report.html", answers, results, report.read_curves(folder))
    if logger is not None:
        for name, figure in report.report_pictures(answers).items():
            logger.experiment.add_figure(name, figure, results["epochs"])


def save_results(results: dict[str, Any], folder: Path) -> None:
    """Write ``results.json`` into a run's folder.

    Args:
        results: Everything that is known of the run.
        folder: The run's folder.
    """
    temporary = folder / ".results.json.part"
    # JSON has no NaN: a figure that is none becomes null.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    temporary.write_text(json.dumps(finite, indent=2) + "\n")
    temporary.replace(folder / "results.json")


def load_results(folder: Path) -> dict[str, Any]:
    """Read ``results.json`` of a run.

    Args:
        folder: The run's folder.

    Returns:
        What ``save_results`` was given; nothing where there is no such file.
    """
    path = folder / "results.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def shorten(path: str) -> str:
    """Write a path relative to the working folder, where that is possible.

    Args:
        path: A file or folder.

    Returns:
        The relative path; on another drive, the path as it was.
    """
    try:
        return os.path.relpath(path)
    except ValueError:
        return path


def format_table(results: dict[str, Any]) -> str:
    """Lay the figures out for a terminal of 80 columns.

    Args:
        results: Figures, and what is known beside them; only what is there is shown.

    Returns:
        The table, of several lines.
    """
    lines = [f"{'':<20}{'validation':>12}{'test':>12}"]
    for title, key in (
        ("accuracy", "Accuracy"),
        ("with test views", "ViewsAccuracy"),
        ("macro accuracy", "MacroAccuracy"),
        ("top-5 accuracy", "Top5Accuracy"),
        ("loss", "Loss"),
    ):
        values = [results.get(f"{key}/{split}") for split in ("val", "test")]
        if key == "MacroAccuracy" and "AccuracyInterval/test" in results:
            low, high = results["AccuracyInterval/test"]
            lines.append(f"{'95 % interval':<20}{'':>12}{f'{low:.3f}-{high:.3f}':>12}")
        if any(value is not None for value in values):
            lines.append(f"{title:<20}" + "".join(f"{'' if v is None else f'{v:.4f}':>12}" for v in values))
    per_class = {
        key.removeprefix("ClassAccuracy/test/"): value
        for key, value in results.items()
        if key.startswith("ClassAccuracy/test/")
    }
    if per_class:
        lines += ["", "test accuracy per class"]
    lines += [f"  {name[:29]:<30}{value:>12.4f}" for name, value in per_class.items()]
    lines += ["", *(f"{title:<12}{text}" for title, text in _remarks(results))]
    return "\n".join(lines)


def _remarks(results: dict[str, Any]) -> list[tuple[str, str]]:
    parts = (("num_train", "train"), ("num_val", "validation"), ("num_test", "test"))
    sizes = [f"{results[key]:,} {name}" for key, name in parts if results[key]]
    remarks = [
        ("data", f"{results['title']}: {', '.join(sizes)}"),
        ("network", f"{results['network']}, {results['num_parameters']:,} parameters"),
    ]
    if "train_seconds" in results:
        seconds = results["train_seconds"]
        speed = f"{seconds:.{0 if seconds >= 10 else 1}f} s, {results['images_per_second']:,.0f} images/s"
        epochs = "1 epoch" if results["epochs"] == 1 else f"{results['epochs']} epochs"
        remarks.append(("training", f"{epochs} in {speed}"))
    kept = f", of epoch {results['best_epoch']}" if results.get("best_epoch") else ""
    remarks.append(("checkpoint", f"{results['checkpoint']}{kept}"))
    if "run" in results:
        run = results["run"]
        remarks += [("run", run), ("curves", f"tensorboard --logdir {Path(run).parent}")]
        if not results["checkpoint"].startswith("none"):
            remarks.append(("test again", f"python scripts/test.py {run}"))
        if "Confusion/test" in results:
            remarks.append(("report", f"{run}/report.html"))
    return remarks
