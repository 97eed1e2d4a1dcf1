"""Two settings in pairs of seeds: what is trained, the table, what is refused."""

import json
from pathlib import Path

import pytest

from cifar_lit.commands.experiment import Experiment
from cifar_lit.commands.paired import _verdict, summarise
from cifar_lit.commands.setting import Setting, holding_out
from cifar_lit.commands.trial import Row
from cifar_lit.errors import UserError
from cifar_lit.evaluation.paired import Estimate, mean_interval, paired_interval
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
        (Estimate(0.0002, 0.0), "All differences are the same, so that their spread is not known"),
        (paired_interval({0: 0.4, 1: 0.6}, {0: 0.41, 1: 0.61}), "All differences are the same"),
        (Estimate(0.0, 0.0), "do not show"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(estimate: Estimate, expected: str) -> None:
    assert expected in _verdict(estimate, 0)
    assert _verdict(estimate, 2).startswith("2 runs diverged: the pairs that are left do not show")


SETTINGS = [Setting("first", ["--model.lr=0.1"]), Setting("second", ["--model.lr=0.2"])]


def stand_in(args: list[str], device: str = "cpu (x)") -> Row:
    """Make a row without a training: the second setting is better by a little more with each seed, and half as fast."""
    seed, is_second = int(args[-1].removeprefix("--seed_everything=")), "--model.lr=0.2" in args
    accuracy = 0.5 + is_second * (0.01 + 0.001 * seed)
    of_run = {"accuracy": accuracy, "seconds": 1.0 + is_second, "multiplications": 10**12, "epochs": 1, "num_val": 10}
    return of_run | {"device": device, "versions": {"torch": "2.0"}}


def test_runs_of_another_device_give_no_ratio_of_seconds(tmp_path: Path) -> None:
    Experiment(tmp_path, SETTINGS, range(2), work=stand_in).run()
    text = "\n".join(summarise(Experiment(tmp_path, SETTINGS, range(2))))
    assert "2.00 x" in text
    assert "\non cpu (x), torch 2.0\n" in text
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row | {"device": row["setting"]}) + "\n" for row in rows))
    text = "\n".join(summarise(Experiment(tmp_path, SETTINGS, range(2))))
    assert " x\n" not in text
    assert "2 pairs of equal seeds" in text
    assert "\non first, torch 2.0; second, torch 2.0\n" in text


def test_a_seed_that_diverged_leaves_no_winner(tmp_path: Path) -> None:
    def diverge(args: list[str]) -> Row:
        row = stand_in(args)
        return {"accuracy": None, "device": "cpu"} if args[-1].endswith("=0") and "--model.lr=0.2" in args else row

    experiment = Experiment(tmp_path, SETTINGS, range(4), work=diverge)
    experiment.run()
    text = "\n".join(summarise(experiment))
    assert "1 diverged" in text
    assert "1 runs diverged: the pairs that are left do not show which one is better." in text
    assert "is better:" not in text


def test_a_last_line_without_its_end_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Experiment(tmp_path, SETTINGS, range(1), work=stand_in).run()
    rows = tmp_path / "runs.jsonl"
    rows.write_text(rows.read_text().removesuffix("\n"))
    capsys.readouterr()
    Experiment(tmp_path, SETTINGS, range(2), work=stand_in).run()
    assert capsys.readouterr().out.startswith("2 of 4 runs are there already, in ")
    assert [json.loads(line)["seed"] for line in rows.read_text().splitlines()] == [0, 0, 1, 1]
    rows.write_text(rows.read_text() + '{"setting": "first", "se')
    Experiment(tmp_path, SETTINGS, range(3), work=stand_in).run()
    assert [json.loads(line)["seed"] for line in rows.read_text().splitlines()] == [0, 0, 1, 1, 2, 2]


def test_an_edited_network_is_another_setting(tmp_path: Path) -> None:
    def setting(net: str = "my_net.MyNet") -> Setting:
        return Setting("mine", ["--model.net", net])

    def edit(args: list[str]) -> Row:
        Path("my_net.py").write_text(f"{args}")
        return stand_in(args)

    assert setting().identity == setting().values  # it may be an installed one
    folder = tmp_path / "to"
    Experiment(folder, [setting()], range(1), work=stand_in).run()  # as an earlier version noted it
    Path("my_net.py").write_text("raise AssertionError('it is imported')")
    before = setting().identity
    Experiment(folder, [setting()], range(3), work=edit).run()  # what is imported stays, and so do the rows
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 3
    assert setting().identity != before
    with pytest.raises(UserError, match="where mine was trained before the file of its network was edited"):
        Experiment(folder, [setting()], range(1), work=stand_in)
    Path("nets/inner").mkdir(parents=True)
    for content in "12":
        before = setting("nets.inner.one.Net").identity
        Path("nets/inner/one.py").write_text(content)
        assert before != setting("nets.inner.one.Net").identity != setting().values
    Path("nets/inner/.#one.py").symlink_to("nothing")
    assert setting("nets.inner.one.Net").identity
    ours = setting("cifar_lit.networks.FastCNN")
    assert ours.identity == ours.values


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
