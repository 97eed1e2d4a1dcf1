"""``cifar-lit compare RUN RUN...``: mean and spread over seeds, and whether runs differ significantly."""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cifar_lit.cli.filters import without_notices
from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.cli.trainer import make_trainer
from cifar_lit.commands.options import OF_COMPARE, add_options, given
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.files import printable, shorten
from cifar_lit.machine import precision_to_score
from cifar_lit.metrics import holm, mcnemar, paired_difference, wilson_interval
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.tta import TTA
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
Loaded = dict[tuple[str, ...], CIFAR10DataModule | UserError | OSError]
"""What has the test images of each data, or the error that they came to."""


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


def _parser() -> CommandParser:
    parser = CommandParser(
        "compare",
        "RUN RUN...",
        "Compare runs on test: mean and spread over seeds, and McNemar's test of each against the first.",
        EXAMPLES,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_trust()
    add_options(parser, OF_COMPARE)
    return parser


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if len(options.runs) < 2:
        parser.error("compare needs two or more runs")
    with naming_options(parser.names):
        return compare(options, parser.names)


def compare(options: argparse.Namespace, names: dict[str, str]) -> int:
    """Print the comparison of all runs that can be scored; the exit code is 1 if some cannot."""
    scored, left_out = score_runs(options.runs, given(options, "data"), trust=options.trust, **given(options, "model"))
    if len(scored) < 2 and left_out:
        raise next(iter(left_out.values()))
    with reader_may_leave():
        print(format_comparison(scored, **given(options, "model")))
    for path, error in left_out.items():
        if isinstance(error, UserError):
            error.options = names
        print(f"error: {printable(path)} is left out: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return 1 if left_out else 0


def score_runs(
    paths: Sequence[str],
    overrides: Mapping[str, str],
    *,
    trust: bool = False,
    tta: Literal["none", TTA] = "none",
) -> tuple[list[Scored], dict[str, UserError | OSError]]:
    """Score each run on the test images of its data, whose hyper-parameters are overridden.

    Returns the runs, and the errors of those that cannot be scored, by path.
    """
    runs: dict[str, Run] = {}
    left_out: dict[str, UserError | OSError] = {}
    for path in paths:
        try:
            runs[path] = Run(path, trust=trust)
        except (UserError, OSError) as error:
            left_out[path] = error
    files = [Path(path).resolve() if path in left_out else runs[path].file.resolve() for path in paths]
    if twice := [path for path, file in zip(paths, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"{twice[0]} is given twice: name each run once")
    loaded: Loaded = {}
    scored = []
    for path, run in tqdm(runs.items(), desc="Testing", disable=None, leave=False):
        try:
            scored.append(_score(run, overrides, loaded, tta))
        except (UserError, OSError) as error:
            left_out[path] = error
    return scored, left_out


def _score(run: Run, overrides: Mapping[str, str], loaded: Loaded, tta: Literal["none", TTA]) -> Scored:
    model, datamodule = run.model(), run.datamodule(**overrides)
    key = tuple(datamodule.hparams[name] for name in ("source", "root", "dataset", "image_size", "resize"))
    first = loaded[key] = loaded[key] if key in loaded else _load(datamodule)
    if isinstance(first, Exception):
        raise first
    if first is not datamodule:
        datamodule.take_test(first)
    assert datamodule.test is not None
    images, labels = datamodule.test
    results = run.results
    training = run.config.get("trainer")
    training = training if isinstance(training, dict) else {"epochs": results and results.epochs}
    settings = {**training, **model.hparams, **datamodule.hparams}
    net = settings.pop("net")
    of_net = {f"net.{name}": value for name, value in net["init_args"].items()}
    settings = {"net": net["class_path"].rpartition(".")[2], **of_net, **settings}
    settings["precision"] = precision_to_score(run.precision, on_cpu=False)  # whatever config.yaml says
    scored_in = precision_to_score(run.precision, on_cpu=True)
    probabilities = _predict(model, images.permute(0, 3, 1, 2), tta, scored_in)
    return Scored(
        name=printable(shorten(run.path)),
        recipe=printable(results.recipe if results and results.recipe else type(model.net).__name__),
        seed=int(datamodule.hparams["seed"]),
        settings={name: value for name, value in settings.items() if name not in IGNORED},
        labels=labels,
        correct=probabilities.argmax(1) == labels,
    )


def _predict(model: ImageClassifier, images: Tensor, tta: Literal["none", TTA], precision: str) -> Tensor:
    """Return the probabilities in a precision of the Trainer, on the CPU."""
    with without_notices():
        trainer = make_trainer({"accelerator": "cpu", "devices": 1, "precision": precision, "logger": False})
    trainer.precision_plugin.convert_module(model)
    with trainer.precision_plugin.forward_context():
        return model.predict(images, tta=tta)


def _load(datamodule: CIFAR10DataModule) -> CIFAR10DataModule | UserError | OSError:
    """Load the test images, or return the error: the next run of the same data does not try again."""
    try:
        datamodule.prepare_data()
        datamodule.setup("test")
    except (UserError, OSError) as error:
        return error
    return datamodule


def format_comparison(runs: Sequence[Scored], *, tta: str = "none") -> str:
    """Return the comparison of two or more runs as tables for a terminal of 80 columns."""
    lines = [f"with test-time augmentation: {tta}"] if tta != "none" else []
    lines += [f"{'run':<36}{'recipe':<12}{'seed':>6}{'accuracy':>10}   95 % interval"]
    for run in runs:
        low, high = wilson_interval(int(run.correct.sum()), len(run.correct))
        name, recipe = _end_of(run.name, 34), run.recipe[:11]
        lines.append(f"{name:<36}{recipe:<12}{run.seed:>6}{run.accuracy:>10.4f}   {low:.4f}-{high:.4f}")
    return "\n".join([*lines, "", *_format_groups(runs), "", *_format_tests(runs)])


def _format_groups(runs: Sequence[Scored]) -> list[str]:
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        groups.setdefault(repr([run.recipe, sorted(run.settings.items(), key=str)]), []).append(run)
    lines = [f"{'the same settings':<36}{'runs':>6}{'seeds':>7}{'mean':>10}{'s.d.':>10}"]
    for group in groups.values():
        title = _shortened(_title(group[0], runs), 34)
        accuracies, num_seeds = [run.accuracy for run in group], len({run.seed for run in group})
        spread = f"{statistics.stdev(accuracies):.4f}" if num_seeds > 1 else "-"
        lines.append(f"{title:<36}{len(group):>6}{num_seeds:>7}{statistics.mean(accuracies):>10.4f}{spread:>10}")
    return lines


def _shortened(words: Sequence[str], size: int) -> str:
    """Join as many words as there is room for; those that are left out are dots."""
    titles = [", ".join([*words[:number], "..."]) for number in range(len(words) - 1, 0, -1)]
    fitting = (title for title in (", ".join(words), *titles) if len(title) <= size)
    return next(fitting, words[0][: size - 3] + "...")


def _title(run: Scored, runs: Sequence[Scored]) -> list[str]:
    """Return the recipe of a run, and the settings that differ in other runs of this recipe."""
    same = [other.settings for other in runs if other.recipe == run.recipe]
    differing = [
        f"{name} {value}"
        for name, value in run.settings.items()
        if any(settings.get(name) != value for settings in same)
    ]
    return [printable(word) for word in (run.recipe, *differing)]


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
        lines.append(f"{name}{only_first:>11,}{only_second:>12,}{interval:>17}{_format_p(p_values[run]):>10}")
    if len(counts) > 1:
        lines.append("p is adjusted for the number of tests (Holm).")
    return lines


def _format_p(p: float) -> str:
    return f"{p:.2g}" if p else "<1e-300"  # what a float is too coarse for


def _end_of(text: str, size: int) -> str:
    return text if len(text) <= size else "..." + text[3 - size :]
