"""``cifar-lit test RUN``: score a run on validation and test. Several runs are compared."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from cifar_lit.callbacks.progress import ProgressBar
from cifar_lit.cli.filters import filter_logs
from cifar_lit.cli.options import check_devices
from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.cli.resume import is_tested
from cifar_lit.cli.trainer import make_trainer
from cifar_lit.commands import compare
from cifar_lit.commands.options import OF_COMPARE, OPTIONS, add_options, given
from cifar_lit.errors import UserError
from cifar_lit.evaluation.report import write_report
from cifar_lit.evaluation.score import describe, score
from cifar_lit.evaluation.table import format_table
from cifar_lit.files import shorten, write_atomic
from cifar_lit.machine import computes_on_cpu, precision_to_score
from cifar_lit.networks.base import needed_trust
from cifar_lit.results import Results
from cifar_lit.run import REPORT, RESULTS, Run

OF_TRAINING = ("best_epoch", "epochs", "train_seconds", "images_per_second", "multiplications", "command")
"""What results say of the training that they were written after."""
EXAMPLES = """
cifar-lit test lightning_logs/version_0
cifar-lit test lightning_logs/version_0 --report
cifar-lit test lightning_logs/version_0 lightning_logs/version_1
"""


def _parser() -> CommandParser:
    description = "Score a run or a checkpoint on validation and test. Several of them are compared in one table."
    parser = CommandParser("test", "RUN [RUN...]", description, EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_trust()
    add_options(parser, OPTIONS)
    parser.add_argument("--report", action="store_true", help="write the run's report.html and results.json again")
    return parser


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    with naming_options(parser.names):
        if len(options.runs) > 1:
            _check_comparison(options)
            return compare.compare(options, parser.names)
        score_run(options, splits=("val", "test"))
    return 0


def _check_comparison(options: argparse.Namespace) -> None:
    others = [name for name in OPTIONS if name in options and name not in OF_COMPARE] + ["report"] * options.report
    if others:
        takes = ", ".join(f"--{name}" for name in OF_COMPARE)
        raise UserError(f"`{others[0].rpartition('.')[2]}` is for one run; the comparison of several takes {takes}")


def score_run(options: argparse.Namespace, *, splits: tuple[str, ...]) -> None:
    """Score the weights of a run and print the table."""
    filter_logs()
    run, trainer_options = Run(options.runs[0], trust=options.trust), given(options, "trainer")
    if options.report:
        _check_report(run, trainer_options)
    folder, before = (run.folder_to_write, run.results) if options.report else (None, None)
    model, datamodule = run.model(**given(options, "model")), run.datamodule(**given(options, "data"))
    check_devices(trainer_options.get("devices"), trainer_options.get("accelerator", "auto"))
    bars = [ProgressBar()] if trainer_options.get("enable_progress_bar", True) else []
    writes_nothing = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    if "precision" not in trainer_options:
        on_cpu = computes_on_cpu(trainer_options.get("accelerator", "auto"))
        trainer_options["precision"] = precision_to_score(run.precision, on_cpu=on_cpu)
    trainer = make_trainer({**trainer_options, **writes_nothing, "callbacks": bars})
    metrics = score(trainer, model, datamodule, splits=splits)
    if not trainer.is_global_zero:
        return
    step = run.checkpoint.get("global_step")
    results = describe(model, datamodule, metrics, checkpoint=shorten(run.file), step=step)
    is_part = before is not None and (results.num_val < before.num_val or results.num_test < before.num_test)
    if folder is not None and not is_part:
        assert datamodule.test is not None
        results = _merge(run, results)
        write_atomic(folder / RESULTS, results.to_json())
        write_report(folder / REPORT, results, model, datamodule.test.images)
    with reader_may_leave():
        shown = shorten(folder) if folder else None
        print("\n" + format_table(results, run=shown, trust=needed_trust(model.net)))
    if is_part:
        raise UserError(f"`report`: fewer images than before were scored, so {RESULTS} is kept", exit_code=1)


def _merge(run: Run, results: Results) -> Results:
    """Keep what only the training knows, as far as the results before are of this training."""
    before = run.results
    known = {name: value for name, value in vars(results).items() if value not in (None, 0)}
    known |= {"total_val": results.total_val, "total_test": results.total_test, "step": results.step}
    if before and before.checkpoint and run.own_results is None:
        known |= dict.fromkeys(("best_epoch",) if is_tested(run) else OF_TRAINING)
    return dataclasses.replace(before or results, **known)


def _check_report(run: Run, trainer_options: dict[str, Any]) -> None:
    if run.folder is None:
        raise UserError("`report` needs a run's folder, to be written to")
    for name in ("limit_val_batches", "limit_test_batches"):
        if name in trainer_options:
            raise UserError(f"`report` replaces the results of all images: leave out `{name}`")
