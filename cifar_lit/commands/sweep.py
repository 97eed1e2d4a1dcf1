"""Search for hyper-parameters with Optuna, judged on validation."""

import contextlib
import hashlib
import json
import os
import shlex
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_lit.callbacks.nonfinite import DivergedError
from cifar_lit.callbacks.pruning import PruningCallback
from cifar_lit.cli.filters import without_notices
from cifar_lit.cli.fit import fit
from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.commands.ranges import RANGES, Suggest, parse_ranges
from cifar_lit.commands.setting import CODE, Setting, holding_out
from cifar_lit.commands.trial import (
    LEFT_OUT,
    MACHINE_OPTIONS,
    TRIAL_OPTIONS,
    add_machine_options,
    as_options,
    machine_options,
    settled_precision,
)
from cifar_lit.errors import UserError, import_extra, is_out_of_memory, require
from cifar_lit.files import printable, shorten
from cifar_lit.recipes import RECIPES
from cifar_lit.run import LOGS

EXAMPLES = """
cifar-lit sweep --recipe tuned --set model.lr=log:0.01:0.3 --trials 20
cifar-lit sweep --set model.momentum=lin:0.5:0.95 --set data.batch_size=64,128
cifar-lit sweep --set model.lr=log:0.01:0.3 --storage postgresql://me@host/db
"""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options, training = parser.parse_known_args(args)
    with naming_options(parser.names):
        require("trials", options.trials, options.trials >= 1, "at least 1")
        if options.ckpt_path is not None:
            raise UserError("`ckpt_path`: a trial trains from the start: leave it out")
        machine = machine_options(options)
        given = {word.partition("=")[0].removeprefix("--") for word in training if word.startswith("--")}
        ranges = parse_ranges(options.set, given | machine.keys())
        for word in given & LEFT_OUT.keys():
            raise UserError(f"--{word} is not an option of sweep: {LEFT_OUT[word]}")
        of_files = _settings_of_files(training)
        recipe = options.recipe or str(of_files.get("recipe", "tutorial"))
        # By its settings, and those of files, too: another version, or an editor, may give a name to others.
        parts = [recipe, _digest(Setting("", ["--recipe", recipe]).values), sorted(options.set), training]
        code = Setting("", training).identity.get(CODE)
        searched = json.dumps([*parts, *([_digest(of_files)] if of_files else []), *([code] if code else [])])
        name = options.study or f"{recipe}-{hashlib.sha256(searched.encode()).hexdigest()[:8]}"
        training = [*(["--recipe", options.recipe] if options.recipe else []), *training]
        storage = options.storage or _default_storage(machine.get("trainer.default_root_dir", "."))
        held_out = [] if "data.val_size" in given else holding_out(training)
        fit_options = [*training, *held_out, *as_options(machine)]
        sweep = Sweep(fit_options, ranges, options.trials)
        sweep.open(storage, name, searched)
        with sweep.using_storage():
            sweep.run()
            summary = sweep.summary()
        with reader_may_leave():
            print("\n" + "\n".join(map(printable, summary)))
    return 0


class Sweep:
    """A study in a database, and the fits that are its trials."""

    def __init__(self, fit_options: list[str], ranges: dict[str, Suggest], num_trials: int) -> None:
        self.optuna = import_extra("optuna", extra="sweep")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.fit_options = fit_options
        self.is_automatic = Setting("", fit_options).values.get("trainer.precision") == "auto"
        self.ranges = ranges
        self.num_trials = num_trials

    def open(self, storage: str, name: str, searched: str) -> None:
        """Open or create the study; under one name it must always search the same."""
        optuna, sqlalchemy = self.optuna, import_extra("sqlalchemy", extra="sweep")
        try:
            self.url = sqlalchemy.make_url(storage)  # whose repr hides the password
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise UserError("`storage` is not the URL of a database, such as sqlite:///sweeps.db") from error
        try:
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                database = optuna.storages.RDBStorage(
                    storage,
                    heartbeat_interval=15,
                    grace_period=60,  # seconds of silence after which a process counts as dead
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
                )
            self.study = optuna.create_study(
                storage=database,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            )
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
            # RuntimeError: Optuna's, for a database of another version.
            raise UserError(f"`storage` is {self.url!r}: cannot be opened ({type(error).__name__}: {error})") from error
        try:
            self.study.get_trials()
            before, directions = self.study.user_attrs.get("searched", searched), self.study.directions
        except Exception as error:  # Optuna does not document what it raises for a damaged study
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"`study` is {name}: it is damaged ({reason}); give another name") from error
        if directions != [optuna.study.StudyDirection.MAXIMIZE]:
            raise UserError(f"`study` is {name}, which searches another kind of best value: give another name")
        if before != searched:
            raise UserError(f"`study` is {name}, which searches something else ({before}): give another name")
        self.study.set_user_attr("searched", searched)

    @contextlib.contextmanager
    def using_storage(self) -> Iterator[None]:
        """Turn a database that is locked or lost into a ``UserError``; what is in it stays."""
        sqlalchemy = import_extra("sqlalchemy", extra="sweep")
        try:
            yield
        except (self.optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = f"{error.__cause__ or error}; the same command resumes the sweep"
            raise UserError(f"`storage` is {self.url!r}: {reason}", exit_code=1) from error

    def trials(self, *states: str) -> list[Any]:
        return [trial for trial in self.study.get_trials() if trial.state.name in states]

    def run(self) -> None:
        """Run trials until the study has so many, with those of earlier starts and of other machines."""
        for trial in self.trials("RUNNING"):  # those of killed processes here; on other machines the heartbeat sees it
            host, _, pid = str(trial.user_attrs.get("process")).rpartition(":")
            if host == socket.gethostname() and Path("/proc/self").exists() and not Path("/proc", pid).exists():
                self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
                self.study.enqueue_trial(trial.params)  # try its values again
        if done := len(self.trials("COMPLETE", "PRUNED")):
            name = printable(self.study.study_name)
            print(f"resuming study {name}: {done} of {self.num_trials} trials are done", flush=True)
        if not self.trials("COMPLETE", "PRUNED", "RUNNING"):
            self.study.set_user_attr("precision", None)  # of trials that all died: the machine may have been busy then
        while len(self.trials("COMPLETE", "PRUNED")) < self.num_trials:
            self.study.optimize(self._run_trial, n_trials=1)

    def _run_trial(self, trial: Any) -> float:
        """Fit with the trial's values; return the best of what the fit monitors, of a loss the negative."""
        trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
        values = {name: suggest(trial) for name, suggest in self.ranges.items()}
        tried = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        head, title = f"trial {trial.number + 1:<4}", f"trial {trial.number + 1} of {self.num_trials}"
        try:
            self._settle_precision(values)
            with tqdm(desc=title, unit="epoch", disable=None, leave=False) as bar, without_notices():
                pruner = PruningCallback(trial, bar)
                fit([*self.fit_options, *self._precision(), *as_options(values), *TRIAL_OPTIONS], pruner=pruner)
        except SystemExit as stopped:
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)  # Optuna would leave it running
            if isinstance(stopped.code, int) and stopped.code > 128:  # by a signal
                self.study.enqueue_trial(values)  # so that a resumed sweep tries it
                print("the same command resumes the sweep", flush=True)
            raise
        except Exception as error:
            if isinstance(error, DivergedError):
                reason = "diverged"
            elif (isinstance(error, UserError) or is_out_of_memory(error)) and self.trials("COMPLETE"):
                reason = f"failed ({' '.join(str(error).split())})"
            else:  # if no values have succeeded so far, it may be the whole command that is wrong
                raise
            print(printable(f"{head}  {reason}, {tried}"), flush=True)
            raise self.optuna.TrialPruned from error
        epochs = f"{'stopped after ' * pruner.is_pruned}{pruner.num_epochs} epoch{'s' * (pruner.num_epochs > 1)}"
        print(printable(f"{head}  {abs(pruner.best):.4f}  {tried}, {epochs}"), flush=True)
        if pruner.is_pruned:
            raise self.optuna.TrialPruned
        return pruner.best

    def _settle_precision(self, values: dict[str, Any]) -> None:
        """Settle a precision that is ``auto`` for all trials, if this one is the first."""
        if self.is_automatic and not self._precision():
            precision = settled_precision([*self.fit_options, *as_options(values)], TRIAL_OPTIONS)
            if not self._precision():  # another process may have been faster
                self.study.set_user_attr("precision", precision)

    def _precision(self) -> list[str]:
        """Return the option for a precision that is ``auto``: what it stands for in all trials."""
        precision = self.study.user_attrs.get("precision")
        return [f"--trainer.precision={precision}"] if precision and self.is_automatic else []

    def summary(self) -> list[str]:
        """Return the best trial, and the command that trains and tests it, as lines of text."""
        if not self.trials("COMPLETE"):
            raise UserError("no trial finished: give other ranges, or more `trials`", exit_code=1)
        best = self.study.best_trial
        found = {name: value for name, value in best.params.items() if name in self.ranges}  # a study may have others
        return [
            f"best      trial {best.number + 1}: {abs(best.value):.4f} on validation",
            f"trials    {len(self.trials('COMPLETE'))} finished, {len(self.trials('PRUNED'))} stopped early",
            f"study     {self.study.study_name} in {self.url!r}",
            "",
            shlex.join(["cifar-lit", "fit", *self.fit_options, *self._precision(), *as_options(found)]),
        ]


def _settings_of_files(args: Sequence[str]) -> dict[str, Any]:
    """Return what the files among options set, but for what may differ between machines."""
    files = [part for name, file in Setting("", args).files for part in (f"--{name}", file)]
    values = Setting("", files).values
    return {name: value for name, value in values.items() if name not in MACHINE_OPTIONS}


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:8]


def _default_storage(root: str) -> str:
    file = Path(root, LOGS, "sweeps.db")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`default_root_dir`: {file.parent} cannot be created ({error.strerror})") from error
    return f"sqlite:///{shorten(file)}"


def _parser() -> CommandParser:
    parser = CommandParser(
        "sweep",
        "--set NAME=RANGE [options of fit]",
        "Search for the hyper-parameters that are best on validation. The test images are not scored.",
        EXAMPLES,
    )
    parser.add_argument(
        "--recipe", choices=list(RECIPES), metavar="NAME", help="what every trial starts from (default: tutorial)"
    )
    parser.add_argument("--set", metavar="NAME=RANGE", action="append", required=True, help=f"what to search: {RANGES}")
    parser.add_argument("--trials", type=int, default=20, help="trials in all, with earlier ones (default: 20)")
    parser.add_argument("--study", help="its name (default: made from the recipe and all options)")
    parser.add_argument("--storage", help=f"URL of a database, for many machines (default: SQLite, {LOGS}/sweeps.db)")
    add_machine_options(parser, "ckpt_path")
    return parser
