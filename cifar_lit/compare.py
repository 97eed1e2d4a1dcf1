"""Several runs -> one table: mean and spread over seeds, and whether two models differ by more than chance."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from cifar_lit.checkpoint import find_checkpoint, hyper_parameters, load_checkpoint
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import CommandParser, reader_may_leave
from cifar_lit.report import wilson_interval
from cifar_lit.results import load_results, shorten
from cifar_lit.runs import run_of
from cifar_lit.sources import Split

EXAMPLES = """
python scripts/test.py lightning_logs/version_0 lightning_logs/version_1
python scripts/test.py lightning_logs/version_* --data.root pictures
"""
NO_SETTINGS = ("root", "cache_dir", "mirror", "seed")
"""Hyper-parameters that two runs with the same settings may differ in."""
NO_TRAINING = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "accelerator")
"""Options of the Trainer that do not change a training."""


@dataclass(frozen=True)
class Scored:
    """A run and which of the test images it gets right.

    Attributes:
        name: What it is called.
        recipe: The recipe that it began from.
        seed: What its weights were drawn from.
        settings: All else that it was trained with.
        labels: ``(N,)``, the true labels.
        right: ``(N,)``, whether each image is told right.
    """

    name: str
    recipe: str
    seed: int
    settings: Mapping[str, Any]
    labels: Tensor
    right: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the test images that it tells right."""
        return int(self.right.sum()) / len(self.labels)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test (Q. McNemar, 1947): a sign test on what two disagree in.

    Args:
        only_first: Images that the first model alone tells right.
        only_second: Images that the second model alone tells right.

    Returns:
        How probable a difference at least as large is, if both were equally good.
    """
    num_different, tail, term = only_first + only_second, 0, 1
    for k in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (num_different - k) // (k + 1)  # the next binomial coefficient: whole numbers, so nothing is lost
    return min(1.0, 2 * tail / (1 << num_different))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (S. Holm, 1979).

    Args:
        p_values: Those of single tests.

    Returns:
        The adjusted ones, in the same order.
    """
    adjusted, highest = list(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def paired_difference(only_first: int, only_second: int, num_images: int) -> tuple[float, float]:
    """Estimate by how much the second of two models is better, on images like these (Wald's interval for pairs).

    Args:
        only_first: Images that the first model alone tells right.
        only_second: Images that the second model alone tells right.
        num_images: All images.

    Returns:
        The difference of the accuracies, and half the width of its 95 % interval.
    """
    difference = (only_second - only_first) / num_images
    variance = (only_first + only_second) / num_images - difference**2
    return difference, 1.959964 * math.sqrt(variance / num_images)


def score_runs(paths: Sequence[str], overrides: Mapping[str, str]) -> list[Scored]:
    """Let each run look at the test images of its data.

    Args:
        paths: Folders of runs, or checkpoints.
        overrides: Hyper-parameters of the data that are another's here, as ``root``.

    Returns:
        The runs, in the same order.

    Raises:
        ValueError: If there is no good checkpoint, or one twice, or its data is not at hand or has other classes.
    """
    sources = [find_checkpoint(Path(path)).resolve() for path in paths]
    for path, source in zip(paths, sources, strict=True):
        if sources.count(source) > 1:
            raise ValueError(f"{path} is given twice: name each run once")
    loaded: dict[str, tuple[Split, list[str]]] = {}
    scored = []
    pairs = list(zip(paths, sources, strict=True))
    for path, source in tqdm(pairs, desc="Testing", disable=None, leave=False):
        options, data = hyper_parameters(load_checkpoint(source), source)
        data |= overrides
        key = json.dumps([data[name] for name in ("source", "root")])
        if key not in loaded:
            datamodule = CIFAR10DataModule(**data)
            datamodule.prepare_data()
            datamodule.setup("test")
            assert datamodule.test is not None
            loaded[key] = datamodule.test, datamodule.classes
        split, classes = loaded[key]
        model = ImageClassifier.from_run(source)
        if model.classes != classes:
            raise ValueError(
                f"{path} was trained for other classes than the data in {data['root']} has: give --data.root"
            )
        run = run_of(source)
        results = load_results(run) if run else {}
        settings = {**(_trainer_options(run) or {"epochs": results.get("epochs")}), **options, **data}
        scored.append(
            Scored(
                name=shorten(path),
                recipe=results.get("recipe", type(model.net).__name__),
                seed=int(data["seed"]),
                settings={name: value for name, value in settings.items() if name not in NO_SETTINGS},
                labels=split.labels,
                right=model.predict(split.images).argmax(1) == split.labels,
            )
        )
    return scored


def format_comparison(runs: Sequence[Scored]) -> str:
    """Lay a comparison out for a terminal of 80 columns.

    Args:
        runs: Two or more.

    Returns:
        The table, of several lines.
    """
    lines = [f"{'run':<36}{'recipe':<12}{'seed':>6}{'accuracy':>10}   95 % interval"]
    for run in runs:
        low, high = wilson_interval(int(run.right.sum()), len(run.right))
        lines.append(
            f"{_end_of(run.name, 34):<36}{run.recipe[:11]:<12}{run.seed:>6}{run.accuracy:>10.4f}   {low:.4f}-{high:.4f}"
        )
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.recipe, run.settings], sort_keys=True), []).append(run)
    lines += ["", f"{'the same settings':<36}{'runs':>6}{'seeds':>7}{'mean':>10}{'s.d.':>10}"]
    for group in groups.values():
        accuracies = [run.accuracy for run in group]
        spread = f"{statistics.stdev(accuracies):.4f}" if len(group) > 1 else "-"
        counts = f"{len(group):>6}{len({run.seed for run in group}):>7}"
        lines.append(
            f"{_start_of(_title(group[0], runs), 34):<36}{counts}{statistics.mean(accuracies):>10.4f}{spread:>10}"
        )
    return "\n".join([*lines, "", *_tests(runs)])


def _tests(runs: Sequence[Scored]) -> list[str]:
    first, *others = runs
    counts = {
        place: (int((first.right & ~run.right).sum()), int((run.right & ~first.right).sum()))
        for place, run in enumerate(others)
        if torch.equal(run.labels, first.labels)
    }
    adjusted = dict(zip(counts, holm([mcnemar(*count) for count in counts.values()]), strict=True))
    lines = [
        "McNemar's exact test of these models against the first one, image by image",
        f"first     {_end_of(first.name, 70)}",
        f"{'second':<30}{'only first':>11}{'only second':>12}{'difference':>17}{'p':>10}",
    ]
    for place, run in enumerate(others):
        name = f"{_end_of(run.name, 29):<30}"
        if place not in counts:
            lines.append(f"{name}other test images")
            continue
        difference, half = paired_difference(*counts[place], len(run.labels))
        only_first, only_second = counts[place]
        interval = f"{difference:+.4f}±{half:.4f}" if only_first + only_second else "none"
        lines.append(f"{name}{only_first:>11,}{only_second:>12,}{interval:>17}{adjusted[place]:>10.2g}")
    if len(counts) > 1:
        lines.append("p is adjusted for the number of tests (Holm).")
    return lines


def _trainer_options(run: Path | None) -> dict[str, Any]:
    """Give what a run says of its Trainer that changes a training."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text()) if run else {}
        options = dict(config.get("trainer", {}))
    except (OSError, AttributeError, TypeError, yaml.YAMLError):
        return {}
    return {name: value for name, value in options.items() if name not in NO_TRAINING}


def _title(run: Scored, runs: Sequence[Scored]) -> str:
    """Name a run's settings: its recipe, and what other runs of this recipe have otherwise."""
    same = [other for other in runs if other.recipe == run.recipe]
    differing = [
        f"{name} {value}"
        for name, value in run.settings.items()
        if any(other.settings.get(name) != value for other in same)
    ]
    return ", ".join([run.recipe, *differing])


def _end_of(text: str, size: int) -> str:
    return text if len(text) <= size else "..." + text[3 - size :]


def _start_of(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 3] + "..."


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: Two or more runs' folders or checkpoints, and options.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If a run cannot be tested.
    """
    parser = CommandParser(
        usage="python scripts/test.py RUN_OR_CHECKPOINT RUN_OR_CHECKPOINT... [options]",
        description="Compare runs on test: mean and spread over seeds, and McNemar's test of each against the first.",
        examples=EXAMPLES,
    )
    parser.add_argument("runs", metavar="RUN_OR_CHECKPOINT", nargs="+", help="a run's folder or a checkpoint")
    parser.add_argument("--data.root", dest="root", help="where the images lie, if not where they were")
    parser.add_argument("--data.cache_dir", dest="cache_dir", help="where decoded images are kept")
    options = parser.parse_args(args)
    overrides = {name: getattr(options, name) for name in ("root", "cache_dir") if getattr(options, name) is not None}
    with reader_may_leave():
        print(format_comparison(score_runs(options.runs, overrides)))
    return 0
