"""Two settings in pairs of seeds: what is trained, the table, what is refused."""

import json
from pathlib import Path

import pytest

from cifar_lit.commands.setting import Setting, holding_out
from cifar_lit.evaluation.paired import Estimate, mean_interval
from cifar_lit.main import main
from tests.helpers.images import tiny_files, write_files
from tests.helpers.runs import Refused

COMMON = ["--data.source", "images", "--data.batch_size", "16", "--trainer.max_epochs", "1", "--seeds", "2"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return [*COMMON, "--data.root", str(write_files(tmp_path / "tiny", tiny_files()))]


def test_pairs_of_seeds_make_a_difference_with_its_interval(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text("checkpoint: {monitor: Loss/val}\nmodel: {lr: 1e-9}\n")
    command = ["paired", "--first", "--config=mine.yaml", "--second", "--data.val_size 0 --model.lr=1e-8", *tiny]
    assert main(command) == 0
    printed = capsys.readouterr().out
    (file,) = Path("lightning_logs").glob("paired_*/runs.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["setting"], row["seed"]) for row in rows] == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert len({row["val_images"] for row in rows}) == 1  # also where nothing was to be held out
    gains = [rows[i + 1]["accuracy"] - rows[i]["accuracy"] for i in (0, 2)]
    mean, half_width = mean_interval(gains)
    assert f"difference{f'{100 * mean:+.2f} ± {100 * half_width:.2f}':>17}" in printed
    assert "2 pairs of equal seeds, the last epoch on " in printed
    assert "do not show which one is better" in printed
    assert printed.count(" x\n") == 1
    assert main(command) == 0  # nothing is left to do
    assert " seed 0 " not in capsys.readouterr().out


def test_what_a_file_says_of_the_best_epoch_does_not_count(tiny: list[str]) -> None:
    Path("mine.yaml").write_text("{checkpoint: {monitor: Loss/val}, model: {lr: 0.1}}")
    assert main(["paired", "--second", "--config mine.yaml", *tiny, "--seeds", "1"]) == 0


def test_a_file_changes_nothing_of_what_a_run_is_judged_by_or_leaves(tiny: list[str]) -> None:
    none = dict.fromkeys(("enable_checkpointing", "limit_val_batches"))
    whole = {"logger": True, "devices": 999, "num_nodes": 2, "log_every_n_steps": 5, "fast_dev_run": True, **none}
    for limit in (None, 0):
        Path("mine.yaml").write_text(json.dumps({"trainer": whole | {"limit_test_batches": limit}, "report": True}))
        assert main(["paired", "--second", "--config mine.yaml", *tiny, "--seeds", "1", "--to", f"to{limit}"]) == 0
        first, second = (json.loads(line) for line in Path(f"to{limit}/runs.jsonl").read_text().splitlines())
        assert first["num_val"] == second["num_val"] > 0
    assert not list(Path().rglob("version_*"))


def test_the_recipe_of_a_file_holds_out_images_and_settles_its_precision() -> None:
    Path("mine.yaml").write_text("recipe: tuned\nmodel: {lr: 0.1}")
    values = Setting("", ["--config", "mine.yaml"]).values
    assert (values["data.val_size"], values["trainer.precision"], values["model.lr"]) == (0, "auto", 0.1)
    assert holding_out(["-c", "mine.yaml"]) == ["--data.val_size=null"]
    assert "model.muon_lr" not in Setting("", ["--config", "mine.yaml", "--recipe", "quick"]).values


def test_the_home_folder_is_expanded(tiny: list[str]) -> None:
    Path("home").mkdir()
    Path("home/mine.yaml").write_text("model: {lr: 0.1}")
    assert main(["paired", "--second", "--config ~/mine.yaml", *tiny, "--seeds", "1", "--to=~/to"]) == 0
    assert Path("home/to/runs.jsonl").is_file()


def test_both_settings_are_checked_before_one_is_trained(tiny: list[str], refused: Refused) -> None:
    Path("ck.ckpt").touch()
    Path("ck.yaml").write_text("ckpt_path: ck.ckpt")
    for option, expected in (
        ("--config ck.yaml", "--ckpt_path is ck.ckpt: leave it out, each run starts anew here"),
        ("--data.mixup -1", "--data.mixup is -1.0: must be 0"),
        (
            "--model.weights x --model.freeze_epochs 1",
            "--model.freeze_epochs is 1: must be fewer than the training has",
        ),
    ):
        code, line = refused(["paired", "--second", option, *tiny])
        assert (code, expected in line) == (2, True)
    assert not list(Path().rglob("runs.jsonl"))


def test_a_run_that_diverges_is_counted_and_makes_no_pair(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paired", "--second", "--model.lr=1e30", *tiny, "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 diverged" in printed
    assert "0 pairs of equal seeds" in printed


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.01, 0.005), "The second setting is better"),
        (Estimate(-0.01, 0.005), "The first setting is better"),
        (Estimate(0.01, 0.02), "do not show"),
        (Estimate(0.01, float("nan")), "Fewer than two pairs"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(estimate: Estimate, expected: str) -> None:
    from cifar_lit.commands.paired import _verdict

    assert expected in _verdict(estimate)


@pytest.mark.parametrize(
    ("second", "more", "expected"),
    [
        ("--recipe tutorial --model.lr 0.01", ["--first=--recipe tutorial --model.lr=0.01"], "set the same"),
        ("--seed_everything 3", [], "--second has --seed_everything, which is not an option of paired: give --seeds"),
        ("--model.lr '0.1", [], "--second is --model.lr '0.1: No closing quotation"),
        ("--model.lr 0.1", ["--seed_everything=3"], "--seed_everything, which is not an option of paired"),
        (
            "--checkpoint.monitor Loss/val",
            [],
            "not an option of paired: a run is judged by the accuracy of its last epoch",
        ),
        ("--trainer.limit_val_batches 4", [], "--second has --trainer.limit_val_batches, which is not an option"),
        ("--model.lr 0.1", ["--trainer.limit_test_batches", "2"], "a run is judged by all validation images"),
        ("--model.lr 0.1", ["--trainer.check_val_every_n_epoch", "2"], "a run is judged by all validation images"),
        ("tuned", [], "--second is tuned: must be options of fit, as '--recipe tuned'"),
        ("--data.root elsewhere", [], "--second has --data.root, which is the same for both settings"),
    ],
)
def test_what_is_no_pair_is_refused(second: str, more: list[str], expected: str, refused: Refused) -> None:
    code, line = refused(["paired", "--second", second, *more])
    assert code == 2
    assert expected in line
