"""Sweeps: what is searched, what is kept, what a stop costs, and that the test images are left alone."""

import shlex
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifar_lit.cli import main
from cifar_lit.sources.images import Images
from cifar_lit.sources.split import Split, SplitName
from cifar_lit.trial import Watcher, parse_range
from tests.processes import run, signal_at

optuna = pytest.importorskip("optuna")
Refused = Callable[[list[str]], tuple[int, str]]
STORAGE = "sqlite:///lightning_logs/sweeps.db"
LRS = ["--set", "model.lr=log:0.001:0.1"]
GOOD_FIRST = 1  # with this seed Optuna's grid begins with the first of two values
SHORT = ["--trainer.max_epochs", "2", "--data.batch_size", "16"]


def sweep(*args: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *args])
    assert stopped.value.code == code


def the_study() -> Any:
    (name,) = optuna.get_all_study_names(STORAGE)
    return optuna.load_study(study_name=name, storage=STORAGE)


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("model.lr=log:0.01:0.3", "FloatDistribution(high=0.3, log=True, low=0.01, step=None)"),
        ("--model.momentum=lin:0:0.9", "FloatDistribution(high=0.9, log=False, low=0.0, step=None)"),
        ("data.cutout=int:0:16", "IntDistribution(high=16, log=False, low=0, step=1)"),
        ("data.flip=none,random", "CategoricalDistribution(choices=('none', 'random'))"),
        ("model.net=log:x", ""),
        ("model.lr=0.01:0.1", ""),
        ("model.lr=log:0:1", ""),
        ("model.lr=lin:1:1", ""),
        ("model.lr=lin:0:inf", ""),
        ("model.lr=int:1:2:3", ""),
        ("model.lr=int:0.5:2", ""),
        ("model.lr", ""),
        ("=1,2", ""),
    ],
)
def test_ranges(text: str, distribution: str) -> None:
    if not distribution:
        with pytest.raises(ValueError, match=r"--set .*; give NAME=log:LOW:HIGH"):
            parse_range(text)
        return
    name, suggest = parse_range(text)
    assert name == text.removeprefix("--").partition("=")[0]
    trial = optuna.create_study().ask()
    suggest(trial)
    assert repr(trial.distributions[name]) == distribution


def test_the_best_is_a_command_and_test_is_left_alone(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Images.load

    def not_test(self: Images, split: SplitName) -> Split:
        assert split != "test"
        return load(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "load", not_test)
        sweep(*LRS, "--set", "data.flip=none,random", "--trials", "3", *tiny_args, *SHORT)
        printed = capsys.readouterr().out
        study = the_study()
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
        assert all(len(trial.intermediate_values) == 2 for trial in study.trials)
        assert all(trial.value == max(trial.intermediate_values.values()) for trial in study.trials)
        assert f"best      trial {study.best_trial.number + 1}: {study.best_value:.4f} on validation" in printed
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["sweeps.db"]
        sweep(*LRS, "--set", "data.flip=none,random", "--trials", "4", *tiny_args, *SHORT)  # goes on
        printed = capsys.readouterr().out
        assert "trials behind it: 3" in printed
        assert len(the_study().trials) == 4
    python, script, *args = shlex.split(printed.splitlines()[-1])
    assert (python, script) == ("python", "scripts/fit.py")
    main(["fit", *args, "--no_report"])
    score = f"{the_study().best_value:.4f}"
    assert score in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ("model.lr=0.02,1e30", "diverged, model.lr 1e30"),
        (
            "data.batch_size=16,100000",
            "failed (--data.batch_size is 100000, and there are 48 training images: give fewer)",
        ),
    ],
)
def test_bad_values_are_passed_over(
    choices: str,
    expected: str,
    tiny_args: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, _, values = choices.partition("=")
    grid = optuna.samplers.GridSampler({name: values.split(",")}, seed=GOOD_FIRST)
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda: grid)
    sweep("--set", choices, "--trials", "2", *tiny_args, "--data.batch_size", "16", "--trainer.max_epochs", "2")
    states = {trial.params[name]: trial.state.name for trial in the_study().trials}
    good, bad = values.split(",")
    assert states == {good: "COMPLETE", bad: "PRUNED"}
    assert f"trial 2     {expected}" in capsys.readouterr().out


def test_a_trial_that_is_worse_than_the_others_is_stopped() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.5))

    class FakeTrainer:
        sanity_checking = should_stop = False
        max_epochs, current_epoch = 5, 0
        callback_metrics: dict[str, float] = {}  # noqa: RUF012

    trainer: Any = FakeTrainer()
    watcher = Watcher(study.ask(), "trial 1")
    for trainer.current_epoch, accuracy in enumerate((0.6, 0.7, 0.4)):
        assert not trainer.should_stop
        trainer.callback_metrics = {"Accuracy/val": accuracy}
        watcher.on_validation_end(trainer, None)  # type: ignore[arg-type]
    watcher.close()
    assert (trainer.should_stop, watcher.is_pruned, watcher.num_epochs, watcher.best) == (True, True, 3, 0.7)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stop_costs_the_running_trial(signum: signal.Signals, tiny_args: list[str]) -> None:
    args = ["sweep", *LRS, "--trials", "3", *tiny_args, *SHORT]
    done = run(args, inside=signal_at(8, signum))  # in the second trial, of 6 steps each
    assert done.code == (-9 if signum == signal.SIGKILL else 128 + signum), done.err
    trials = the_study().trials
    assert (trials[0].state.name, len(trials)) == ("COMPLETE", 2 if signum == signal.SIGKILL else 3)
    killed = trials[1]
    assert killed.state.name == ("RUNNING" if signum == signal.SIGKILL else "FAIL")
    done = run(args)
    assert done.code == 0, done.err
    assert "trials behind it: 1" in done.out
    trials = the_study().trials
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials) == 3
    assert trials[1].state.name == "FAIL"
    assert trials[2].params == killed.params  # the next one tries what was stopped


def test_what_a_dead_process_was_trying_is_tried_again(tiny_args: list[str]) -> None:
    args = [*LRS, *tiny_args, *SHORT]
    sweep(*args, "--trials", "1")
    for process in (f"{socket.gethostname()}:999999999", "elsewhere:1"):
        trial = the_study().ask()
        trial.suggest_float("model.lr", 0.001, 0.1, log=True)
        trial.set_user_attr("process", process)
    sweep(*args, "--trials", "2")
    _, dead, elsewhere, again = the_study().trials
    assert [trial.state.name for trial in (dead, elsewhere, again)] == ["FAIL", "RUNNING", "COMPLETE"]
    assert again.params == dead.params


def test_a_signal_ends_the_sweep_and_keeps_the_values(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("cifar_lit.sweep.CLI", stopped)
    sweep(*LRS, *tiny_args, "--trials", "3", code=143)
    failed, waiting = the_study().trials
    assert (failed.state.name, waiting.state.name) == ("FAIL", "WAITING")
    assert waiting.system_attrs["fixed_params"] == failed.params


def test_where_all_are_stopped_early_there_is_no_best(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruners = optuna.pruners
    monkeypatch.setattr(pruners, "MedianPruner", lambda **_: pruners.ThresholdPruner(lower=1.1))
    code, line = refused(["sweep", *LRS, *tiny_args, *SHORT, "--trials", "2"])
    assert code == 1
    assert line == "error: no trial came to its end: give other ranges, or more --trials"
    assert [trial.state.name for trial in the_study().trials] == ["PRUNED"] * 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "the following arguments are required: --set"),
        ([*LRS, "--trials", "0"], "--trials is 0: give 1 or more"),
        ([*LRS, "--ckpt_path", "last"], "--ckpt_path: a trial begins anew"),
        ([*LRS, "--storage", "nothing://here"], "--storage nothing://here cannot be had"),
        (["--set", "model.nothing=1,2"], "model.nothing"),
        ([*LRS, "--data.val_size", "0"], "a sweep is judged on validation, and there is none"),
        (["--set", "model.lr=-1,-2"], "--model.lr is -"),
        ([*LRS, *LRS], "--set: an option is named twice"),
        (
            [*LRS, "--trainer.check_val_every_n_epoch", "5"],
            "--trainer.check_val_every_n_epoch or limit_val_batches: no",
        ),
        (
            [*LRS, "--trainer.default_root_dir", "tiny/train/dark/1.png"],
            "--trainer.default_root_dir: tiny/train/dark/1.",
        ),
        ([*LRS, "--storage", "nothing://me:secret@here/db"], "--storage nothing://me:***@here/db cannot be had"),
    ],
)
def test_bad_arguments_end_in_one_line(args: list[str], expected: str, tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["sweep", *tiny_args, *SHORT, *args])
    assert code == 2
    assert expected in line


def test_a_study_of_something_else_is_refused(tiny_args: list[str], refused: Refused) -> None:
    sweep(*LRS, "--trials", "1", "--study", "first", *tiny_args, *SHORT)
    Path("tiny").rename("moved")
    moved = ["--data.root", "moved"]  # that is the same study, as on another machine
    sweep(*LRS, "--trials", "1", "--study", "first", *tiny_args, *SHORT, *moved)
    for options in (["--set", "model.lr=1,2", *SHORT], [*LRS, *SHORT, "--model.momentum", "0.5"]):
        code, line = refused(["sweep", "--study", "first", *tiny_args, *moved, *options])
        assert code == 2
        assert "--study first searches something else" in line
