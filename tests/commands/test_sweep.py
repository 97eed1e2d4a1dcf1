"""Sweeps: what is searched, what is kept, what a stop costs, and that the test images are left alone."""

import contextlib
import shlex
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from cifar_lit import ImageClassifier
from cifar_lit.callbacks.pruning import PruningCallback
from cifar_lit.commands.ranges import parse_range
from cifar_lit.commands.sweep import Sweep
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.recipes import RECIPES
from tests.helpers.processes import at_step, run, signal_at
from tests.helpers.runs import Refused, forbid_test_images, read_results

optuna = pytest.importorskip("optuna")
STORAGE = "sqlite:///lightning_logs/sweeps.db"
LRS = ["--set", "model.lr=log:0.001:0.1"]
GOOD_FIRST = 1  # with this seed Optuna's grid begins with the first of two values
SHORT = ["--trainer.max_epochs", "2", "--data.batch_size", "16"]


def sweep(*args: str, code: int = 0) -> None:
    assert main(["sweep", *args]) == code


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
        (" model.lr = 1, 2 ", "CategoricalDistribution(choices=('1', '2'))"),
        ("data.image_sizes=[16, 32],[32]", "CategoricalDistribution(choices=('[16, 32]', '[32]'))"),
        ("data.root='a, b',my pictures", "CategoricalDistribution(choices=('a, b', 'my pictures'))"),
        ("model.net={class_path: A},B", "CategoricalDistribution(choices=('{class_path: A}', 'B'))"),
        ("model.lr=log:0:1", ""),
        ("model.lr=log:0.3:0.1", ""),
        ("model.lr=lin:-1e308:1e308", ""),
        ("model.lr=lin:nan:1", ""),
        (f"data.cutout=int:0:{10**30}", ""),
        ("data.flip=none,none", ""),
        ("data.flip=,none", ""),
        ("data.flip=[none,random]", ""),
        ("data.flip={,", ""),
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
        with pytest.raises(UserError, match=r"`set` is .*; give NAME=log:LOW:HIGH"):
            parse_range(text)
        return
    name, suggest = parse_range(text)
    assert name == text.removeprefix("--").partition("=")[0].strip()
    trial = optuna.create_study().ask()
    suggest(trial)
    assert repr(trial.distributions[name]) == distribution


def test_the_best_is_a_command_and_test_is_left_alone(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        forbid_test_images(patch)
        sweep(*LRS, "--set", "data.flip=none,random", "--trials", "3", *tiny_args, *SHORT)
        printed = capsys.readouterr().out
        study = the_study()
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
        assert all(len(trial.intermediate_values) == 2 for trial in study.trials)
        assert all(trial.value == max(trial.intermediate_values.values()) for trial in study.trials)
        assert f"best      trial {study.best_trial.number + 1}: {study.best_value:.4f} on validation" in printed
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["sweeps.db"]
        sweep(*LRS, "--set", "data.flip=none,random", "--trials", "4", *tiny_args, *SHORT)  # resumes
        printed = capsys.readouterr().out
        assert ": 3 of 4 trials are done" in printed
        assert len(the_study().trials) == 4
    program, *args = shlex.split(printed.splitlines()[-1])
    assert program == "cifar-lit"
    assert main([*args, "--no_report"]) == 0
    score = f"{the_study().best_value:.4f}"
    assert score in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))


def test_what_auto_stands_for_is_settled_once(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["64-true", "32-true", "32-true"])
    used: list[object] = []
    settled: list[object] = []
    monkeypatch.setattr("cifar_lit.cli.auto.choose_precision", lambda *_args: next(answers))
    start = PruningCallback.on_fit_start

    def noting(self: PruningCallback, trainer: Trainer, pl_module: LightningModule) -> None:
        used.append(trainer.precision)
        settled.append(the_study().user_attrs.get("precision"))  # before the first trial ends: for other processes
        start(self, trainer, pl_module)

    monkeypatch.setattr(PruningCallback, "on_fit_start", noting)
    for precision in ("auto", "32-true"):
        sweep(*LRS, *tiny_args, *SHORT, "--trials", "2", f"--trainer.precision={precision}")
        Path("lightning_logs/sweeps.db").unlink()
        printed = capsys.readouterr().out
        assert printed.splitlines()[-1].count(" --trainer.precision=64-true") == (precision == "auto")
    assert used == ["64-true", "64-true", "32-true", "32-true"]
    assert settled == ["64-true", "64-true", None, None]


@pytest.mark.parametrize("recipe", ["tuned", "small"])
def test_trials_of_a_recipe_without_validation_hold_out_images(
    recipe: str, tiny_root: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    command = ["sweep", "--recipe", recipe, *LRS, "--data.source", "images", "--data.root", str(tiny_root), *SHORT]
    sweep(*command[1:], "--trials", "1")
    printed = capsys.readouterr().out
    assert f"{the_study().best_value:.4f} on validation" in printed
    best = shlex.split(printed.splitlines()[-1])
    assert best[:4] == ["cifar-lit", "fit", "--recipe", recipe]
    assert "--data.val_size=null" in best  # the same images
    code, line = refused([*command, "--data.val_size", "0"])
    assert (code, "--data.val_size: a sweep is judged on validation" in line) == (2, True)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ("model.lr=0.02,1e30", "diverged, model.lr 1e30"),
        ("data.batch_size=16,100000", "failed (--data.batch_size is 100000"),
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
    others = [] if name == "data.batch_size" else ["--data.batch_size", "16"]
    sweep("--set", choices, "--trials", "2", *tiny_args, *others, "--trainer.max_epochs", "2")
    states = {trial.params[name]: trial.state.name for trial in the_study().trials}
    good, bad = values.split(",")
    assert states == {good: "COMPLETE", bad: "PRUNED"}
    assert f"trial 2     {expected}" in capsys.readouterr().out


def test_a_trial_starts_from_the_recipe_of_a_file_and_leaves_nothing(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.yaml").write_text("{recipe: tuned, trainer: {enable_checkpointing: null, logger: true}, report: true}")
    seen: list[object] = []
    start = PruningCallback.on_fit_start

    def noting(self: PruningCallback, trainer: Trainer, pl_module: ImageClassifier) -> None:
        seen.append((pl_module.hparams["muon_lr"], pl_module.hparams["weight_decay"]))
        start(self, trainer, pl_module)

    monkeypatch.setattr(PruningCallback, "on_fit_start", noting)
    sweep("--config", "mine.yaml", *LRS, *tiny_args, *SHORT, "--trainer.precision=32-true", "--trials", "1")
    assert seen == [(0.03, 1e-4)]
    name = the_study().study_name
    assert name.startswith("tuned-")
    assert not list(Path("lightning_logs").glob("version_*"))
    assert main([*shlex.split(capsys.readouterr().out.splitlines()[-1])[1:], "--no_report"]) == 0
    assert seen == [(0.03, 1e-4)]
    assert read_results()["recipe"] == "tuned"
    Path("mine.yaml").write_text(Path("mine.yaml").read_text().replace("report", "model: {momentum: 0.5}, report"))
    sweep("--config", "mine.yaml", *LRS, *tiny_args, *SHORT, "--trainer.precision=32-true", "--trials", "1")
    assert len(optuna.get_all_study_names(STORAGE)) == 2
    for width in (8, 16):
        Path("net.yaml").write_text(f"class_path: FastCNN\ninit_args: {{widths: [{width}]}}\n")
        sweep("--model.net", "net.yaml", *LRS, *tiny_args, *SHORT, "--trials", "1")
    assert len(optuna.get_all_study_names(STORAGE)) == 4


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_costs_the_running_trial(
    signum: signal.Signals, tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*LRS, "--trials", "2", *tiny_args, *SHORT]
    with monkeypatch.context() as patch:
        at_step(8, lambda: signal.raise_signal(signum), patch)  # in the second trial, of 6 steps each
        sweep(*args, code=128 + signum)
    assert "the same command resumes the sweep" in capsys.readouterr().out
    assert [trial.state.name for trial in the_study().trials] == ["COMPLETE", "FAIL", "WAITING"]
    sweep(*args)
    assert ": 1 of 2 trials are done" in capsys.readouterr().out
    _, stopped, again = the_study().trials
    assert (stopped.state.name, again.state.name) == ("FAIL", "COMPLETE")
    assert again.params == stopped.params


@pytest.mark.slow
def test_a_kill_costs_the_running_trial(tiny_args: list[str]) -> None:
    args = [*LRS, "--trials", "2", *tiny_args, *SHORT]
    assert run(["sweep", *args], inside=signal_at(8, signal.SIGKILL)).code == -signal.SIGKILL
    assert [trial.state.name for trial in the_study().trials] == ["COMPLETE", "RUNNING"]
    sweep(*args)
    _, killed, again = the_study().trials
    assert (killed.state.name, again.state.name) == ("FAIL", "COMPLETE")
    assert again.params == killed.params


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


def opened(num_trials: int) -> Sweep:
    """Return a sweep whose study was opened, and has up to four trials with 0.5 to 0.8 in both epochs."""
    sweep = Sweep([], {}, 9)
    sweep.open("sqlite:///study.db", "mine", "the same")
    for value in (0.5, 0.6, 0.7, 0.8)[:num_trials]:
        sweep.study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={1: value, 2: value}))
    return sweep


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(("num_before", "value", "is_pruned"), [(3, 0.1, False), (4, 0.64, True), (4, 0.66, False)])
def test_a_trial_is_stopped_below_the_median_of_four_or_more(num_before: int, value: float, is_pruned: bool) -> None:
    trial = opened(num_before).study.ask()
    for epoch in (1, 2):
        trial.report(value, epoch)
    assert bool(trial.should_prune()) is is_pruned


@pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore:.*fail_stale_trials is experimental")
def test_a_process_elsewhere_counts_as_dead_after_a_minute_of_silence() -> None:
    study = opened(0).study
    dead, alive = (study.ask({"model.lr": optuna.distributions.FloatDistribution(0, 1)}) for _ in range(2))
    with contextlib.closing(sqlite3.connect("study.db")) as database, database:
        for trial, seconds in ((dead, 70), (alive, 45)):
            beat = f"insert into trial_heartbeats (trial_id, heartbeat) values ({trial._trial_id}, "
            database.execute(f"{beat}datetime('now', '-{seconds} seconds'))")
    optuna.storages.fail_stale_trials(study)
    of_dead, of_alive, again = study.trials
    assert [trial.state.name for trial in (of_dead, of_alive, again)] == ["FAIL", "RUNNING", "WAITING"]
    assert again.params == dead.params


def test_where_all_are_stopped_early_there_is_no_best(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruners = optuna.pruners
    monkeypatch.setattr(pruners, "MedianPruner", lambda **_: pruners.ThresholdPruner(lower=1.1))
    code, line = refused(["sweep", *LRS, *tiny_args, *SHORT, "--trials", "2"])
    assert code == 1
    assert line == "error: no trial finished: give other ranges, or more --trials"
    assert [trial.state.name for trial in the_study().trials] == ["PRUNED"] * 2


def test_a_bug_keeps_its_traceback(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(*LRS, *tiny_args, *SHORT, "--trials", "1")

    def broken(*args: Any, **options: Any) -> None:
        raise TypeError("a bug in a network")

    for target in ("cifar_lit.commands.sweep.fit", "optuna.create_study"):
        with monkeypatch.context() as patch:
            patch.setattr(target, broken)
            with pytest.raises(TypeError, match="a bug in a network"):
                main(["sweep", *LRS, *tiny_args, *SHORT, "--trials", "2"])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "the following arguments are required: --set"),
        ([*LRS, "--trials", "0"], "--trials is 0: must be at least 1"),
        ([*LRS, "--ckpt_path", "last"], "--ckpt_path: a trial trains from the start"),
        ([*LRS, "--trainer.logger", "true"], "--trainer.logger is not an option of sweep: a run leaves only its"),
        ([*LRS, "--storage", "sweeps.db"], "--storage is not the URL of a database"),
        ([*LRS, "--storage", "sqlite://here:port/db"], "--storage is not the URL of a database"),
        ([*LRS, "--storage", "sqlite:///nowhere/sweeps.db"], "cannot be opened (OperationalError: "),
        ([*LRS, "--storage", "nothing://here"], "--storage is nothing://here: cannot be opened (NoSuchModuleError: "),
        (["--set", "model.nothing=1,2"], "model.nothing"),
        ([*LRS, "--data.val_size", "0"], "--data.val_size: a sweep is judged on validation, and there is none"),
        (["--set", "model.lr=-1,-2"], "--model.lr is -"),
        ([*LRS, *LRS], "--set: an option is named twice"),
        ([*LRS, "--model.lr=1"], "--set searches model.lr, and --model.lr is given, too"),
        (["--set", "data.root=a,b"], "--set searches data.root, and --data.root is given, too"),
        (["--set", "ckpt_path=a,b"], "--set is ckpt_path: a trial trains from the start"),
        (
            ["--set", "checkpoint.monitor=Loss/val,Accuracy/val"],
            "--set is checkpoint.monitor: trials are compared by one",
        ),
        (["--set", "checkpoint={monitor: Loss/val},{}"], "--set is checkpoint: trials are compared by one metric"),
        ([*LRS, "--study", ""], "--study is '': must have a value"),
        (
            [*LRS, "--trainer.check_val_every_n_epoch", "5"],
            "--trainer.check_val_every_n_epoch or --trainer.limit_val_batches: no epoch",
        ),
        (
            [*LRS, "--trainer.default_root_dir", "tiny/train/dark/1.png"],
            "--trainer.default_root_dir: tiny/train/dark/1.",
        ),
        ([*LRS, "--storage", "nothing://me:secret@here/db"], "--storage is nothing://me:***@here/db: cannot be opened"),
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
        assert "--study is first, which searches something else" in line


def test_a_study_of_a_recipe_that_has_changed_is_refused(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sweep", *LRS, "--trials", "1", "--study", "first", *tiny_args, *SHORT]
    assert main(command) == 0
    changed = RECIPES["tutorial"].read_text(encoding="utf-8").replace("lr: 0.01", "lr: 0.01\n  momentum: 0.5")
    Path("changed.yaml").write_text(changed, encoding="utf-8")
    monkeypatch.setitem(RECIPES, "tutorial", Path("changed.yaml"))
    code, line = refused(command)
    assert (code, "--study is first, which searches something else" in line) == (2, True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "update alembic_version set version_num = 'v9.9'",
            "cannot be opened (RuntimeError: The runtime optuna version",
        ),
        ("update trials set state = 'ODD'", "--study is s: it is damaged (LookupError: "),
        ("update trial_params set distribution_json = '{'", "--study is s: it is damaged (JSONDecodeError: "),
        ("update trial_values set value = NULL", "--study is s: it is damaged (AssertionError"),
        ("update study_directions set direction = 'MINIMIZE'", "--study is s, which searches another kind of best"),
        ("update study_user_attributes set value_json = '7'", "--study is s, which searches something else (7)"),
        ("", "--storage is sqlite:///study.db: cannot be opened (DatabaseError: "),
    ],
)
def test_a_study_that_is_damaged_or_of_another_version_is_named(change: str, expected: str, refused: Refused) -> None:
    storage = "sqlite:///study.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.set_user_attr("searched", "the same")
    study.optimize(lambda trial: trial.suggest_float("model.lr", 0.001, 0.1), n_trials=1)
    with contextlib.closing(sqlite3.connect("study.db")) as database, database:
        database.execute(change)
    if not change:
        Path("study.db").write_bytes(b"no database" * 1000)
    code, line = refused(["sweep", *LRS, "--study", "s", "--storage", storage])
    assert code == 2
    assert expected in line


def test_a_database_that_is_lost_ends_in_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError("internal") from sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(optuna.Study, "optimize", locked)
    code, line = refused(["sweep", *LRS])
    assert code == 1
    assert line.endswith("sweeps.db: database is locked; the same command resumes the sweep")
