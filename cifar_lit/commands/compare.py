"""``cifar-lit compare RUN RUN...``: mean and spread over seeds, and whether runs differ significantly."""

import json
import statistics
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.data import Split
from cifar_lit.errors import UserError
from cifar_lit.files import shorten
from cifar_lit.metrics import holm, mcnemar, paired_difference, wilson_interval
from cifar_lit.run import Run

EXAMPLES = """
cifar-lit compare lightning_logs/version_0 lightning_logs/version_1
cifar-lit compare lightning_logs/version_* --data.root pictures
"""
IGNORED = (
    *("root", "cache_dir", "mirror", "seed"),
    *("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary", "accelerator"),
)
"""Hyper-parameters and options of the Trainer that may differ between runs with the same settings."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A run, its recipe (or network), and which test images it classifies correctly, ``(N,)``."""

    name: str
    recipe: str
    seed: int
    settings: Mapping[str, Any]
    labels: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / len(self.labels)


def main(args: Sequence[str]) -> int:
    parser = CommandParser(
        "compare",
        "RUN RUN...",
        "Compare runs on test: mean and spread over seeds, and McNemar's test of each against the first.",
        EXAMPLES,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_trust()
    parser.add_argument(
        "--data.root", dest="root", default=SUPPRESS, help="where the images are, if not where they were"
    )
    parser.add_argument("--data.cache_dir", dest="cache_dir", default=SUPPRESS, help="where decoded images are cached")
    overrides = vars(parser.parse_args(args))
    paths, trust = overrides.pop("runs"), overrides.pop("trust")
    if len(paths) < 2:
        parser.error("compare needs two or more runs")
    with naming_options(parser.names), reader_may_leave():
        print(format_comparison(score_runs(paths, overrides, trust=trust)))
    return 0


def score_runs(paths: Sequence[str], overrides: Mapping[str, str], *, trust: bool = False) -> list[Scored]:
    """Score each run on the test images of its data, whose hyper-parameters are overridden."""
    runs = [Run(path, trust=trust) for path in paths]
    files = [run.file.resolve() for run in runs]
    for run, file in zip(runs, files, strict=True):
        if files.count(file) > 1:
            raise UserError(f"{run.path} is given twice: name each run once")
    loaded: dict[tuple[str, str], Split] = {}
    return [_score(run, overrides, loaded) for run in tqdm(runs, desc="Testing", disable=None, leave=False)]


def _score(run: Run, overrides: Mapping[str, str], loaded: dict[tuple[str, str], Split]) -> Scored:
    model, datamodule = run.model(), run.datamodule(**overrides)
    key = datamodule.hparams["source"], datamodule.hparams["root"]
    if key not in loaded:
        datamodule.prepare_data()
        datamodule.setup("test")
        assert datamodule.test is not None
        loaded[key] = datamodule.test
    images, labels = loaded[key]
    results = run.results
    training = run.config.get("trainer") or {"epochs": results and results.epochs}
    settings = {**training, **model.hparams, **datamodule.hparams}
    return Scored(
        name=shorten(run.path),
        recipe=results.recipe if results and results.recipe else type(model.net).__name__,
        seed=int(datamodule.hparams["seed"]),
        settings={name: value for name, value in settings.items() if name not in IGNORED},
        labels=labels,
        correct=model.predict(images.permute(0, 3, 1, 2)).argmax(1) == labels,
    )


def format_comparison(runs: Sequence[Scored]) -> str:
    """Return the comparison of two or more runs as tables for a terminal of 80 columns."""
    lines = [f"{'run':<36}{'recipe':<12}{'seed':>6}{'accuracy':>10}   95 % interval"]
    for run in runs:
        low, high = wilson_interval(int(run.correct.sum()), len(run.correct))
        name, recipe = _end_of(run.name, 34), run.recipe[:11]
        lines.append(f"{name:<36}{recipe:<12}{run.seed:>6}{run.accuracy:>10.4f}   {low:.4f}-{high:.4f}")
    return "\n".join([*lines, "", *_format_groups(runs), "", *_format_tests(runs)])


def _format_groups(runs: Sequence[Scored]) -> list[str]:
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.recipe, run.settings], sort_keys=True), []).append(run)
    lines = [f"{'the same settings':<36}{'runs':>6}{'seeds':>7}{'mean':>10}{'s.d.':>10}"]
    for group in groups.values():
        title = _title(group[0], runs)
        title = title if len(title) <= 34 else title[:31] + "..."
        accuracies, num_seeds = [run.accuracy for run in group], len({run.seed for run in group})
        spread = f"{statistics.stdev(accuracies):.4f}" if len(group) > 1 else "-"
        lines.append(f"{title:<36}{len(group):>6}{num_seeds:>7}{statistics.mean(accuracies):>10.4f}{spread:>10}")
    return lines


def _title(run: Scored, runs: Sequence[Scored]) -> str:
    """Return the recipe of a run, with the settings that differ in other runs of this recipe."""
    same = [other.settings for other in runs if other.recipe == run.recipe]
    differing = [
        f"{name} {value}"
        for name, value in run.settings.items()
        if any(settings.get(name) != value for settings in same)
    ]
    return ", ".join([run.recipe, *differing])


def _format_tests(runs: Sequence[Scored]) -> list[str]:
    first, *others = runs
    counts = {
        run: (int((first.correct & ~run.correct).sum()), int((run.correct & ~first.correct).sum()))
        for run in others
        if torch.equal(run.labels, first.labels)
    }
    p_values = dict(zip(counts, holm([mcnemar(*count) for count in counts.values()]), strict=True))
    lines = [
        "McNemar's exact test of these models against the first one, image by image",
        f"first     {_end_of(first.name, 70)}",
        f"{'second':<30}{'only first':>11}{'only second':>12}{'difference':>17}{'p':>10}",
    ]
    for run in others:
        name = f"{_end_of(run.name, 29):<30}"
        if run not in counts:
            lines.append(f"{name}other test images")
            continue
        only_first, only_second = counts[run]
        difference, half = paired_difference(only_first, only_second, len(run.labels))
        interval = f"{difference:+.4f}±{half:.4f}" if only_first + only_second else "none"
        lines.append(f"{name}{only_first:>11,}{only_second:>12,}{interval:>17}{p_values[run]:>10.2g}")
    if len(counts) > 1:
        lines.append("p is adjusted for the number of tests (Holm).")
    return lines


def _end_of(text: str, size: int) -> str:
    return text if len(text) <= size else "..." + text[3 - size :]
