"""``cifar-lit test RUN``: score a run on validation and test. Several runs are compared."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from cifar_lit.callbacks.progress import ProgressBar
from cifar_lit.cli.arguments import check_devices
from cifar_lit.cli.filters import filter_logs
from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.cli.trainer import make_trainer
from cifar_lit.commands import compare
from cifar_lit.errors import UserError
from cifar_lit.evaluation.report import write_report
from cifar_lit.evaluation.score import describe, score
from cifar_lit.evaluation.table import format_table
from cifar_lit.files import shorten, write_atomic
from cifar_lit.networks.tta import TTA
from cifar_lit.run import REPORT, RESULTS, Run

EXAMPLES = """
cifar-lit test lightning_logs/version_0
cifar-lit test lightning_logs/version_0 --report
cifar-lit test lightning_logs/version_0 lightning_logs/version_1
"""


def number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def boolean(text: str) -> bool:
    return bool(("false", "true").index(text.lower()))


OPTIONS: dict[str, dict[str, Any]] = {
    "--data.root": {"help": "where the images are, if not where they were"},
    "--data.cache_dir": {"help": "where decoded images are cached"},
    "--data.mirror": {"help": "a URL of CIFAR-10 that is tried first"},
    "--model.tta": {"choices": ("none", *get_args(TTA)), "help": "test-time augmentation, if not that of the run"},
    "--trainer.accelerator": {"help": "cpu, gpu, mps, ... (default: auto)"},
    "--trainer.devices": {"help": "how many, or which: 0,1 (default: auto)"},
    "--trainer.strategy": {"help": "ddp for several devices (default: auto)"},
    "--trainer.num_nodes": {"type": int, "help": "machines (default: 1)"},
    "--trainer.precision": {"help": "32-true, bf16-mixed, ... (default: 32-true)"},
    "--trainer.limit_val_batches": {"type": number, "help": "validation batches, by number or fraction"},
    "--trainer.limit_test_batches": {"type": number, "help": "test batches, by number or fraction"},
    "--trainer.enable_progress_bar": {"type": boolean, "help": "true or false (default: true)"},
}
"""Those of ``fit`` that make sense for a run that is scored. What is not given has no entry in the parsed options."""


def make_parser(name: str, arguments: str, description: str, examples: str) -> CommandParser:
    """Return a parser with what ``test`` and ``validate`` have in common."""
    parser = CommandParser(name, arguments, description, examples)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_trust()
    for option, details in OPTIONS.items():
        metavar = None if "choices" in details else option.rpartition(".")[2].upper()
        parser.add_argument(option, default=argparse.SUPPRESS, metavar=metavar, **details)
    parser.set_defaults(report=False)
    return parser


def main(args: Sequence[str]) -> int:
    description = "Score a run or a checkpoint on validation and test. Several of them are compared in one table."
    parser = make_parser("test", "RUN [RUN...]", description, EXAMPLES)
    parser.add_argument("--report", action="store_true", help="write the run's report.html and results.json again")
    options = parser.parse_args(args)
    if len(options.runs) > 1:
        return compare.main(args)
    with naming_options(parser.names):
        score_run(options, splits=("val", "test"))
    return 0


def score_run(options: argparse.Namespace, *, splits: tuple[str, ...]) -> None:
    """Score the weights of a run and print the table."""
    filter_logs()
    run, trainer_options = Run(options.runs[0], trust=options.trust), _given(options, "trainer")
    if options.report:
        _check_report(run, trainer_options)
    folder, before = (run.folder_to_write, run.results) if options.report else (None, None)
    model, datamodule = run.model(**_given(options, "model")), run.datamodule(**_given(options, "data"))
    check_devices(trainer_options.get("devices"), trainer_options.get("accelerator", "auto"))
    bars = [ProgressBar()] if trainer_options.get("enable_progress_bar", True) else []
    writes_nothing = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = make_trainer({**trainer_options, **writes_nothing, "callbacks": bars})
    metrics = score(trainer, model, datamodule, splits=splits)
    if not trainer.is_global_zero:
        return
    results = describe(model, datamodule, metrics, checkpoint=shorten(run.file))
    if folder is not None:
        assert datamodule.test is not None
        known = {name: value for name, value in vars(results).items() if value not in (None, 0)}
        if before and before.checkpoint and Path(before.checkpoint).name != run.file.name:
            known["best_epoch"] = None
        results = dataclasses.replace(before or results, **known)  # keeps what only the training knows
        write_report(folder / REPORT, results, model, datamodule.test.images)
        write_atomic(folder / RESULTS, results.to_json())
    with reader_may_leave():
        print("\n" + format_table(results, run=shorten(folder) if folder else None))


def _check_report(run: Run, trainer_options: dict[str, Any]) -> None:
    if run.folder is None:
        raise UserError("`report` needs a run's folder, to be written to")
    for name in ("limit_val_batches", "limit_test_batches"):
        if name in trainer_options:
            raise UserError(f"`report` replaces the results of all images: leave out `{name}`")


def _given(options: argparse.Namespace, group: str) -> dict[str, Any]:
    prefix = f"{group}."
    return {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}
