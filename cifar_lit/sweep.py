"""Search for settings, judged on validation: ``python scripts/sweep.py --set model.lr=log:0.01:0.3``."""

import argparse
import functools
import hashlib
import json
import os
import re
import shlex
import socket
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_lit.command import CLI
from cifar_lit.machine import is_out_of_memory
from cifar_lit.parser import CommandParser, import_extra, is_for_people, reader_may_leave, without_notices
from cifar_lit.recipes import RECIPES
from cifar_lit.results import shorten
from cifar_lit.runs import LOGS
from cifar_lit.saver import DivergedError
from cifar_lit.trial import Watcher, parse_range

EXAMPLES = """
python scripts/sweep.py --recipe tuned --set model.lr=log:0.01:0.3 --trials 20
python scripts/sweep.py --set model.lr=log:0.003:0.3 \\
    --set model.momentum=lin:0.5:0.95 --set data.batch_size=64,128,256 \\
    --trainer.max_epochs 5
python scripts/sweep.py --set model.lr=log:0.003:0.3 --study first \\
    --storage postgresql://user@host/name
"""
HEARTBEAT_SECONDS, GRACE_SECONDS = 15, 60
"""How often a process says that its trial goes on, and after how long a silence others take it for dead."""
OF_A_TRIAL = [
    *("--trainer.enable_checkpointing", "false", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--no_report"),
]
"""Options of ``fit`` for a trial: its figures are in the study, and it leaves nothing else behind."""


class _StoppedError(Exception):
    """Carries the exit code of a signal past Optuna, which takes no notice of SystemExit."""


class Sweep:
    """One study: what is searched, where it is kept, what was found.

    Args:
        recipe: The recipe that every trial begins from.
        fit_args: Options of ``fit`` for every trial.
        ranges: What ``--set`` was given.
        study: The name of the study; None for one that is made of the three above.
        storage: A URL of SQLAlchemy.

    Raises:
        ValueError: If the storage cannot be had, or if the study of this name searches something else.
    """

    def __init__(
        self, recipe: str, fit_args: Sequence[str], ranges: Sequence[str], study: str | None, storage: str
    ) -> None:
        self.fit_args = ["--recipe", recipe, *fit_args]
        self.recipe = recipe
        self.ranges = dict(parse_range(text) for text in ranges)
        if len(self.ranges) < len(ranges):
            raise ValueError("--set: an option is named twice; give all that is tried of it in one")
        self.storage = storage
        searched = json.dumps([recipe, sorted(ranges), _of_the_training(fit_args)])
        self.name = study or f"{recipe}-{hashlib.sha256(searched.encode()).hexdigest()[:8]}"
        self.optuna = import_extra("optuna", extra="sweep")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.study = self._open()
        before = self.study.user_attrs.get("searched", searched)
        if before != searched:
            raise ValueError(f"--study {self.name} searches something else ({before}): give another name")
        self.study.set_user_attr("searched", searched)
        self._take_up_what_was_killed()

    def _open(self) -> Any:
        """Open the study, or begin it."""
        optuna = self.optuna
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = optuna.storages.RDBStorage(
                    self.storage,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
                )
                return optuna.create_study(
                    storage=storage,
                    study_name=self.name,
                    direction="maximize",
                    load_if_exists=True,
                    sampler=optuna.samplers.TPESampler(),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
                )
        except Exception as error:  # SQLAlchemy and its drivers have no closed list of what they raise
            raise ValueError(f"--storage {self.title} cannot be had ({type(error).__name__}: {error})") from error

    @property
    def title(self) -> str:
        """The storage, without a password."""
        return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", self.storage)

    def trials(self, *states: str) -> list[Any]:
        """Give the trials that are in one of the states.

        Args:
            states: Names of Optuna's states.

        Returns:
            The trials.
        """
        states_wanted = [self.optuna.trial.TrialState[state] for state in states]
        return list(self.study.get_trials(states=states_wanted))

    def _take_up_what_was_killed(self) -> None:
        """Try once more what a process of this machine, which is no longer there, was trying when it was killed.

        Of another machine's process the heartbeat tells, after a minute.
        """
        for trial in self.trials("RUNNING"):
            host, _, pid = trial.user_attrs.get("process", "").rpartition(":")
            if host == socket.gethostname() and Path("/proc/self").exists() and not Path("/proc", pid).exists():
                self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
                self.study.enqueue_trial(trial.params)

    def run(self, num_trials: int) -> None:
        """Try settings until so many trials are over, those of earlier starts and of other machines among them.

        Args:
            num_trials: How many.

        Raises:
            SystemExit: If a signal ends it.
        """
        while len(self.trials("COMPLETE", "PRUNED")) < num_trials:
            try:
                self.study.optimize(functools.partial(self._try, num_trials=num_trials), n_trials=1)
            except _StoppedError as stopped:
                raise SystemExit(stopped.args[0]) from None

    def _try(self, trial: Any, num_trials: int) -> float:
        trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
        values = {name: suggest(trial) for name, suggest in self.ranges.items()}
        args = ["fit", *self.fit_args, *_as_args(values)]
        head, what = f"trial {trial.number + 1:<4}  ", ", ".join(f"{name} {_short(v)}" for name, v in values.items())
        watcher = Watcher(trial, f"trial {trial.number + 1} of {num_trials}")
        try:
            with without_notices():
                CLI([args[0], *OF_A_TRIAL, *args[1:]], self.recipe, command=shlex.join(args), watcher=watcher)
        except SystemExit as stopped:
            if stopped.code in (130, 143):
                self.study.enqueue_trial(values)  # so that it is tried when the sweep goes on
                print("the same command goes on with the sweep", flush=True)
            raise _StoppedError(stopped.code) from None
        except Exception as error:
            # These values may be impossible; but if none were possible so far, it is the command that is.
            is_of_the_values = isinstance(error, DivergedError) or (
                bool(self.trials("COMPLETE")) and (is_for_people(error) or is_out_of_memory(error))
            )
            if not is_of_the_values:
                raise
            reason = "diverged" if isinstance(error, DivergedError) else f"failed ({' '.join(str(error).split())})"
            watcher.close()
            print(f"{head}{reason}, {what}", flush=True)
            raise self.optuna.TrialPruned from error
        finally:
            watcher.close()
        if watcher.best is None:
            raise ValueError("--trainer.check_val_every_n_epoch or limit_val_batches: no epoch of a trial is validated")
        epochs = f"{watcher.num_epochs} epoch{'s' if watcher.num_epochs > 1 else ''}"
        end = f"stopped after {epochs}" if watcher.is_pruned else epochs
        print(f"{head}{watcher.best:.4f}  {what}, {end}", flush=True)
        if watcher.is_pruned:
            raise self.optuna.TrialPruned
        return watcher.best

    def summary(self) -> str:
        """Say which trial is best, and how it is trained and tested.

        Returns:
            Several lines.

        Raises:
            RuntimeError: If no trial was finished.
        """
        finished, pruned = self.trials("COMPLETE"), self.trials("PRUNED")
        if not finished:
            raise RuntimeError("no trial came to its end: give other ranges, or more --trials")
        best = max(finished, key=lambda trial: trial.value)
        lines = [
            f"best      trial {best.number + 1}: {best.value:.4f} on validation",
            f"trials    {len(finished)} to the end, {len(pruned)} stopped early",
            f"study     {self.name} in {self.title}",
            "",
            shlex.join(["python", "scripts/fit.py", *self.fit_args, *_as_args(best.params)]),
        ]
        return "\n".join(lines)


def _of_the_training(fit_args: Sequence[str]) -> list[str]:
    """Leave out of the options what is another on another machine, for the same study."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("data.root", "data.cache_dir", "data.mirror", "trainer.default_root_dir", "trainer.accelerator"):
        parser.add_argument(f"--{name}")
    return parser.parse_known_args(list(fit_args))[1]


def _as_args(values: Mapping[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: Options of the sweep and, for each of its trials, of ``fit``.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an argument makes no sense.
    """
    parser = CommandParser(
        usage="python scripts/sweep.py --set NAME=RANGE [options] [options of fit]",
        description="Search for the settings that are best on validation. The test images are not looked at.",
        examples=EXAMPLES,
    )
    parser.add_argument("--recipe", choices=list(RECIPES), default="tutorial", help="what every trial begins from")
    parser.add_argument(
        "--set",
        metavar="NAME=RANGE",
        action="append",
        required=True,
        help="an option of fit and what is tried: log:LOW:HIGH, lin:LOW:HIGH, int:LOW:HIGH or VALUE,VALUE,...",
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="trials in all, those of earlier starts too (default: 20)"
    )
    parser.add_argument("--study", help="its name (default: made of the recipe and all options)")
    parser.add_argument(
        "--storage", help=f"a database's URL, for many machines (default: an SQLite file, {LOGS}/sweeps.db)"
    )
    options, fit_args = parser.parse_known_args(args)
    if options.trials < 1:
        raise ValueError(f"--trials is {options.trials}: give 1 or more")
    for arg in fit_args:
        if arg.partition("=")[0] == "--ckpt_path":
            raise ValueError("--ckpt_path: a trial begins anew; leave it out")
    storage = options.storage
    if storage is None:
        root = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        root.add_argument("--trainer.default_root_dir", dest="folder", default=".")
        file = Path(root.parse_known_args(fit_args)[0].folder, LOGS, "sweeps.db")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--trainer.default_root_dir: {file.parent} cannot be made ({error.strerror})") from error
        storage = f"sqlite:///{shorten(str(file))}"
    sweep = Sweep(options.recipe, fit_args, options.set, options.study, storage)
    num_earlier = len(sweep.trials("COMPLETE", "PRUNED"))
    if num_earlier:
        print(f"going on with study {sweep.name}: trials behind it: {num_earlier}", flush=True)
    sweep.run(options.trials)
    with reader_may_leave():
        print("\n" + sweep.summary())
    return 0
