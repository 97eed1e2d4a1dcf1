"""The ladder: each run once, whatever stops and however many processes; what is kept, refused and shown."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from cifar_lit.cli.fit import fit
from cifar_lit.commands.experiment import Experiment
from cifar_lit.commands.ladder import parse_numbers
from cifar_lit.commands.setting import Setting
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.recipes import LADDER
from tests.helpers.images import tiny_files, write_files
from tests.helpers.processes import Run, signal_at
from tests.helpers.runs import Refused, forbid_test_images
from tests.helpers.trainers import note_precisions

FIRST, LAST = LADDER[0].stem, LADDER[-1].stem
SHORT = ["--data.val_size", "12", "--data.batch_size", "16", "--model.net.widths", "[8]", "--epochs", "1"]
ENDS = ["--steps", f"0,{len(LADDER) - 1}", "--seeds", "2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run both ends with two seeds, without the test images, and return the folder with pictures and results."""
    folder = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        forbid_test_images(patch)
        write_files(Path("tiny"), tiny_files())
        assert main(["ladder", *ENDS, *options(folder)]) == 0
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


def options(folder: Path) -> list[str]:
    return ["--data.source", "images", "--data.root", str(folder / "tiny"), "--to", "to", *SHORT]


def rows(folder: Path, name: str = "runs.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "to" / name).read_text().splitlines()]


def test_a_row_has_what_the_table_needs(done: Path) -> None:
    assert [(row["setting"], row["seed"]) for row in rows(done)] == [(FIRST, 0), (LAST, 0), (FIRST, 1), (LAST, 1)]
    first, last, *_ = rows(done)
    assert first["accuracy"] == first["accuracy_without_tta"]
    assert (last["epochs"], last["steps"], last["num_val"]) == (1, 3, 12)
    assert last["val_images"] == first["val_images"]
    assert first["multiplications"] == 48 * (2 * 32 * 32 * 8 * 75 + 3 * (8 * 16 * 16 * 64 + 64 * 3))
    assert "cpu" in str(first["device"])
    assert {"torch", "lightning", "cifar_lit"} <= dict(first["versions"]).keys()  # type: ignore[call-overload]
    table = (done / "to/ladder.md").read_text()
    assert f"| {len(LADDER) - 1} | Test-time augmentation | " in table
    assert "epochs: 1; seeds: 2; validation images: 12; 95 % intervals" in table
    assert (done / "to/ladder.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_that_of_fit_with_the_same_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = options(folder)
    assert main(["ladder", "--show", str(len(LADDER) - 1), *own]) == 0
    shown = capsys.readouterr().out
    settings = yaml.safe_load(shown)
    assert (settings["trainer"]["max_epochs"], settings["model"]["tta"]) == (1, "mirror_shift")
    Path("last.yaml").write_text(shown)
    given = [*own[:4], "--config", "last.yaml", "--seed_everything", "1", "--no_report"]
    results = fit([*given, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false"])
    assert results is not None
    assert results.metrics["Accuracy/val"] == pytest.approx(rows(folder)[3]["accuracy_without_tta"], abs=1e-6)
    assert results.multiplications == rows(folder)[3]["multiplications"]


def test_what_is_done_is_not_done_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "to/runs.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # a process died while it wrote the last
    assert main(["ladder", *ENDS, *options(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" seed ") == 1
    assert f"{LAST:<24} seed 1" in printed
    assert len(rows(folder)) == 4
    assert rows(folder)[3]["accuracy"] == json.loads(lines[3])["accuracy"]
    monkeypatch.setattr("cifar_lit.commands.trial.fit", None)
    assert main(["ladder", *ENDS, *options(folder)]) == 0


def test_what_another_process_does_is_left_to_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["ladder", "--steps", "0", "--seeds", "2-3", *options(folder)]
    with FileLock(folder / f"to/.locks/runs.jsonl_{FIRST}_2.lock"):
        assert main(args) == 0
    printed = capsys.readouterr().out
    assert [row["seed"] for row in rows(folder)[4:]] == [3]
    assert "1 runs are being done by other processes" in printed


def test_the_ends_are_tested_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["ladder", *ENDS, *options(folder), "--test"]
    assert main(args) == 0
    assert f"step {len(LADDER) - 1} on the test images: " in capsys.readouterr().out
    tests = rows(folder, "test.jsonl")
    assert sorted((str(row["setting"]), row["seed"], row["num_test"]) for row in tests) == sorted(
        (name, seed, 24) for name in (FIRST, LAST) for seed in (0, 1)
    )
    monkeypatch.setattr("cifar_lit.commands.experiment.score_test", None)
    assert main(args) == 0


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_weights_are_tested_in_the_precision_of_their_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: True)
    used = note_precisions("trial", monkeypatch)
    names = ("bf16-mixed", "64-true", "32-true")
    args = [*options(folder)[:4], *SHORT[:4], "--trainer.max_epochs=1"]
    settings = [Setting(name, [*args, f"--trainer.precision={name}"]) for name in names]
    experiment = Experiment(Path("own"), settings, [0], kept=names)
    experiment.run()
    experiment.test()
    assert [row["precision"] for row in experiment.rows()] == used == list(names)


def test_what_auto_stands_for_is_settled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["64-true", "32-true", "32-true"])
    monkeypatch.setattr("cifar_lit.cli.auto.choose_precision", lambda *_args: next(answers))
    args = [*options(folder)[:4], *SHORT[:4], "--trainer.max_epochs=1"]
    automatic = [*args, "--trainer.precision=auto"]
    settings = [Setting("auto", automatic), Setting("auto too", automatic), Setting("own", args)]
    experiment = Experiment(Path("own"), settings, [0, 1])
    experiment.run()
    assert [row["precision"] for row in experiment.rows()] == ["64-true", "64-true", "32-true"] * 2


def test_processes_that_begin_together_settle_auto_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, given = iter(["64-true", "32-true"]), []
    args = [*options(folder)[:4], *SHORT[:4], "--trainer.precision=auto"]
    settings = [Setting("first", args), Setting("second", args)]

    def train(args: list[str], **_options: object) -> dict[str, object]:
        given.append([word for word in args if word.startswith("--trainer.precision")][-1])
        if len(given) == 1:  # it has no row yet
            Experiment(Path("own"), settings, [0]).run()
        return {"accuracy": None}

    monkeypatch.setattr("cifar_lit.cli.auto.choose_precision", lambda *_args: next(answers))
    monkeypatch.setattr("cifar_lit.commands.experiment.train", train)
    Experiment(Path("own"), settings, [0]).run()
    assert given == ["--trainer.precision=64-true"] * 2


def test_what_was_settled_for_runs_that_died_is_settled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, given = iter(["64-true", "32-true"]), []
    settings = [Setting("only", [*options(folder)[:4], *SHORT[:4], "--trainer.precision=auto"])]

    def die(args: list[str], **_options: object) -> dict[str, object]:
        given.append([word for word in args if word.startswith("--trainer.precision")][-1])
        raise UserError("died")

    monkeypatch.setattr("cifar_lit.cli.auto.choose_precision", lambda *_args: next(answers))
    monkeypatch.setattr("cifar_lit.commands.experiment.train", die)
    for _ in range(2):
        with pytest.raises(UserError, match="died"):
            Experiment(Path("own"), settings, [0]).run()
    with FileLock("own/.locks/runs.jsonl_only_0.lock"):  # another process trains, other seeds than this one
        Experiment(Path("own"), settings, [0]).run()
        with pytest.raises(UserError, match="died"):
            Experiment(Path("own"), settings, [1]).run()
    assert given == [f"--trainer.precision={one}" for one in ("64-true", "32-true", "32-true")]
    assert Path("own/precision.txt").read_text() == "32-true"


def test_a_ladder_names_the_files_that_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    wild = ["--steps", "0", "--seeds", "1", "--model.lr", "1e30", *options(folder)]
    assert main(["ladder", *wild, "--to", "wild"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wild/ladder.md"
    (folder / "wild/runs.jsonl").unlink()
    with FileLock(folder / f"wild/.locks/runs.jsonl_{FIRST}_0.lock"):  # another process does it
        assert main(["ladder", *wild, "--to", "wild"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("those of equal seeds.\n1 runs are being done by other processes\nwild/ladder.md\n")


def test_a_run_that_diverges_is_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = options(folder)[:4]
    settings = [Setting("wild", [*args, *SHORT[:4], "--trainer.max_epochs=1", "--model.lr=1e30"])]
    experiment = Experiment(Path("own"), settings, [0])
    experiment.run()
    (row,) = experiment.rows()
    assert row["accuracy"] is None
    assert str(row["diverged"]).startswith(("the loss is ", "net."))
    assert "diverged" in capsys.readouterr().out
    assert experiment.num_left == 0


def test_other_settings_are_not_mixed_in(folder: Path, refused: Refused) -> None:
    before = rows(folder)
    for more, expected in (
        (["--epochs", "2"], f"where {FIRST} has 1 for --trainer.max_epochs and not 2: give another folder"),
        (["--model.lr=0.3"], "has 0.01 for --model.lr and not 0.3"),
        (["--data.cutout", "4"], "has no value for --data.cutout and not 4"),
    ):
        code, line = refused(["ladder", *ENDS, *options(folder), *more])
        assert code == 2
        assert line.startswith("error: --to is to, ")
        assert expected in line
        _, line = refused(["ladder", "--steps", "1", *options(folder), *more])  # of a step that was not trained
        assert expected.partition(" has")[2] in line
    for image in list((folder / "tiny/train/dark").iterdir())[::2]:
        image.unlink()
    _, line = refused(["ladder", "--steps", "1", "--seeds", "1", *options(folder)])
    assert "the runs there are judged on other images" in line
    assert rows(folder) == before


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--seed_everything", "3"], "--seed_everything is not an option of ladder: give --seeds"),
        (["--trainer.max_epochs=3"], "give --epochs"),
        (["--checkpoint.monitor", "Loss/val"], "a run is judged by the accuracy of its last epoch"),
        (["--trainer.devices", "2"], "a run takes one device"),
        (["--trainer.limit_val_batches=4"], "a run is judged by all validation images"),
        (["--trainer.logger=true"], "--trainer.logger is not an option of ladder: a run leaves only its result"),
        (["--trainer.fast_dev_run", "true"], "--trainer.fast_dev_run is not an option of ladder: give --trainer.limit"),
        (
            ["--trainer.callbacks+=RichProgressBar"],
            "--trainer.callbacks has RichProgressBar, and a run leaves only",
        ),
        (["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=1"], "trains a further epoch"),
        (["--no_report"], "--no_report is not an option of ladder: a run leaves only its result"),
        (["--trainer.default_root_dir", "x"], "--trainer.default_root_dir is not an option of ladder: give --to"),
        (["--steps", "1-3", "--test"], f"--steps is 1-3: must have 0 or {len(LADDER) - 1}, which --test scores"),
        (["--steps", "0-99"], f"--steps is 0-99: must be numbers from 0 to {len(LADDER) - 1}, as 0-3,7"),
        (["--data.val_size", "0"], "--data.val_size: the runs are judged on validation"),
        (["--model.lrr", "3"], "--model.lrr"),
    ],
)
def test_bad_options_are_refused(args: list[str], expected: str, folder: Path, refused: Refused) -> None:
    code, line = refused(["ladder", *options(folder), "--to", "other", *args])
    assert code == 2
    assert expected in line


def test_a_misspelt_option_is_answered_and_costs_no_folder(folder: Path, refused: Refused) -> None:
    args = ["ladder", "--steps", "0", "--seeds", "1", *options(folder)[:4], "--to", "new", *SHORT[:-2]]
    _, line = refused([*args, "--step", "3"])
    assert "did you mean --steps?" in line
    _, line = refused([*args, "--lrr", "3"])
    assert "unrecognized arguments: --lrr" in line
    assert main([*args, "--epochs", "1"]) == 0


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("runs.jsonl", "{nothing\n", "runs.jsonl is damaged"),
        ("runs.jsonl", "{}\n", "line 1 is not of a run"),
        ("runs.jsonl", '{"setting": "a", "seed": 0, "accuracy": NaN}\n', "line 1 is not of a run"),
        ("settings.json", "", "settings.json is damaged: give another folder"),
        ("settings.json", '{"00_tutorial": 3}', "settings.json is damaged: give another folder"),
    ],
)
def test_a_damaged_file_is_named(name: str, text: str, expected: str, folder: Path, refused: Refused) -> None:
    (folder / "to" / name).write_text(text)
    if name == "runs.jsonl":
        (folder / "to/settings.json").unlink()
    _, line = refused(["ladder", *ENDS, *options(folder)])
    assert expected in line


def test_a_folder_of_somebody_else_is_only_data(folder: Path, refused: Refused) -> None:
    file = folder / f"to/weights/{FIRST}_seed0.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"]["net"] = {"class_path": "not_imported.Net", "init_args": {}}
    torch.save(checkpoint, file)
    (folder / "not_imported.py").write_text("raise AssertionError")
    _, line = refused(["ladder", *ENDS, *options(folder), "--test"])
    assert "the network not_imported.Net is of another package" in line
    (folder / "mine").write_text("mine")
    (folder / "to/test.jsonl").symlink_to(folder / "mine")
    _, line = refused(["ladder", *ENDS, *options(folder)])
    assert "--to is to: test.jsonl in it is a link" in line


@pytest.mark.parametrize("name", ["runs.jsonl", "test.jsonl", "settings.json", "precision.txt", "weights"])
def test_nothing_is_written_through_a_link_to_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / name).symlink_to(tmp_path / "new")
    with pytest.raises(UserError, match=f"{name} in it is a link"):
        Experiment(tmp_path / "to", [], [])


def test_a_run_whose_multiplications_are_not_known_is_one(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, [], [])
    row = {"setting": "a", "seed": 0, "accuracy": 0.5, "seconds": 1, "multiplications": None, "epochs": 1, "num_val": 9}
    (tmp_path / "runs.jsonl").write_text(json.dumps(row) + "\n")
    assert experiment.rows() == [row]


def test_numbers() -> None:
    assert parse_numbers("steps", "0-2, 7,1,9-8") == [0, 1, 2, 7, 9, 8]
    for text in ("", "a", "1-", "-1", "1,,2", "1.5", "99999999999", "0-4000000000", "1" * 5000):
        with pytest.raises(UserError, match="`steps` is"):
            parse_numbers("steps", text)


@pytest.mark.slow
def test_two_processes_share_the_runs_and_a_kill_costs_one(folder: Path) -> None:
    args = ["ladder", "--steps", "0-3", "--seeds", "3-4", *options(folder)]
    killed = Run(args, inside=signal_at(5, signal.SIGKILL))
    (folder / "elsewhere").mkdir()
    args = [str(folder / "to") if arg == "to" else arg for arg in args]
    os.chdir(folder / "elsewhere")
    other = Run(args)
    assert killed.wait().code == -signal.SIGKILL
    assert other.wait().code == 0
    assert main(args) == 0
    new = [(row["setting"], row["seed"]) for row in rows(folder)[4:]]
    assert sorted(new, key=str) == sorted([(path.stem, seed) for path in LADDER[:4] for seed in (3, 4)], key=str)
