"""The record page: from make to check to draw; rules that an entry breaks; what is committed."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.benchmarks import board, record
from cifar_lit.benchmarks.board import BEGIN, END, Summary, table
from cifar_lit.benchmarks.entries import KNOWN, Entry, Images, checksum
from cifar_lit.benchmarks.record import RECORDS, main
from cifar_lit.benchmarks.rules import count
from cifar_lit.commands.trial import check
from cifar_lit.data.split import Split
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.errors import UserError
from cifar_lit.main import main as cifar_lit

COMMAND = [
    *("make", "--name", "tiny", "--seeds", "3", "--data.source", "synthetic", "--data.val_size=100"),
    *("--model.net", "FastCNN", "--model.net.widths", "[8,8]", "--model.tta", "mirror", "--model.muon_lr=0.1"),
    *("--data.image_sizes", "[16,24,32]", "--trainer.max_epochs", "2", "--data.batch_size", "64"),
    *("--trainer.limit_train_batches", "3", "--trainer.accumulate_grad_batches", "2"),
]


def fit(command: list[str]) -> str:
    """Run a command of ours here."""
    assert command[:4] == [sys.executable, "-m", "cifar_lit", "fit"]
    assert cifar_lit(command[3:]) == 0
    return ""


def set_up(patch: pytest.MonkeyPatch) -> None:
    """Let a few generated images be a class of entries, and let the processes be this one."""
    patch.setattr(Synthetic.__init__, "__kwdefaults__", {"num_train": 400, "num_test": 100, "seed": 0})
    patch.setitem(KNOWN, checksum(Synthetic().load("train"), Synthetic().load("test")), Images("synthetic", 400, 100))
    patch.setattr(record, "run", fit)
    patch.setattr(record, "gemm_rate", lambda: 50.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        set_up(patch)
        assert main(COMMAND) == 0
    return folder


@pytest.fixture
def made(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy an entry that was made, and return its file."""
    set_up(monkeypatch)
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return Path("lightning_logs/record_tiny/tiny.jsonl")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file: Path, parts: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(part)}\n" for part in parts))


def test_an_entry_has_all_settings_and_a_row_for_each_seed(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert head["settings"]["model"]["muon_lr"] == 0.1
    assert head["settings"]["trainer"]["gradient_clip_val"] is None  # also what was not given
    assert "seed_everything" not in head["settings"]
    assert not {"root", "cache_dir", "mirror"} & head["settings"]["data"].keys()
    assert f"{torch.get_num_threads()} threads" in head["machine"]
    for row in rows:
        assert (row["epochs"], row["num_train"], row["num_test"], row["gflops"]) == (2, 300, 100, 50.0)
        assert 0 < row["train_seconds"] < row["seconds"]
    assert main(["check", str(made)]) == 0
    assert capsys.readouterr().out == "1 entries, no problems\n"  # the multiplications are those of the settings


def test_the_seeds_that_are_done_are_not_trained_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lines(made)
    rows = made.with_name("runs.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:2]))
    commands: list[list[str]] = []

    def noted(command: list[str]) -> str:
        commands.append(command)
        return fit(command)

    monkeypatch.setattr(record, "run", noted)
    made.unlink()
    assert main(COMMAND) == 0
    assert [command[-2] for command in commands] == ["--seed_everything=2"]
    assert [row["accuracy"] for row in lines(made)[1:]] == [row["accuracy"] for row in before[1:]]


def test_entries_may_share_a_folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*COMMAND, "--name", "other", "--to", str(made.parent)]) == 0
    others = made.with_name("other.jsonl")
    assert [row["seed"] for row in lines(others)[1:]] == [0, 1, 2]
    made.unlink()
    assert main(COMMAND) == 0
    assert main(["check", str(made), str(others)]) == 0


def test_all_seeds_have_the_precision_of_the_first(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["64-true", "32-true", "32-true"])
    monkeypatch.setattr("cifar_lit.cli.auto.choose_precision", lambda *_args: next(answers))
    assert main([*COMMAND, "--name", "auto", "--trainer.precision", "auto"]) == 0
    rows = lines(Path("lightning_logs/record_auto/runs.jsonl"))
    assert [row["precision"] for row in rows] == ["64-true"] * 3


def test_two_do_not_measure_at_once(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_another(_: list[str]) -> str:
        assert main(COMMAND) == 2
        raise UserError("the first stops here")

    made.with_name("runs.jsonl").unlink()
    monkeypatch.setattr(record, "run", run_another)
    assert main(COMMAND) == 2
    other, first = capsys.readouterr().err.splitlines()
    assert other == f"error: --to is {made.parent}, where another make runs: side by side, both would be slower"
    assert first == "error: the first stops here"


def test_rows_of_another_machine_make_no_entry_and_no_other_seed_is_trained(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made.with_name("runs.jsonl")
    (row,) = lines(rows)[:1]
    monkeypatch.setattr(record, "run", lambda _: pytest.fail("it trains"))
    made.unlink()
    write(rows, [row | {"machine": "cpu (another)"}])
    assert main(COMMAND) == 2
    assert "which has a seed 0 of another machine (cpu (another)) than here and now" in capsys.readouterr().err
    write(rows, [row])
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    assert main(COMMAND) == 2
    assert "which has a seed 0 of another environment (" in capsys.readouterr().err
    assert not made.exists()


def test_an_environment_that_changes_the_rate_alone_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, *rows = lines(made)
    write(made, [head | {"environment": {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"}}, *rows])
    expected = "environment: MKL_CBWR is set, which changes the GEMM rate more than the training: unset it"
    assert problems(made, capsys) == [f"1: {expected}"]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setattr(record, "run", lambda _: pytest.fail("it trains"))
    assert main([*COMMAND, "--to", "other"]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_an_entry_is_made_again_from_its_settings(made: Path) -> None:
    Path("again.yaml").write_text(json.dumps(lines(made)[0]["settings"]))
    assert main(["make", "--name", "again", "--seeds", "3", "--config", "again.yaml"]) == 0
    again = lines(Path("lightning_logs/record_again/again.jsonl"))
    assert again[0]["settings"] == lines(made)[0]["settings"]
    assert [row["accuracy"] for row in again[1:]] == [row["accuracy"] for row in lines(made)[1:]]


def problems(file: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Check an entry that breaks rules, and return what is said after its name."""
    capsys.readouterr()
    assert main(["check", str(file)]) == 1
    *found, end = capsys.readouterr().out.splitlines()
    assert end == "1 entries, with problems"
    assert all(text.startswith(f"{file}:") for text in found)
    return [text.removeprefix(f"{file}:") for text in found]


def test_each_rule_that_a_seed_breaks_is_named_with_its_line(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, row, *_ = lines(made)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"accuracy": 0.9012}, "accuracy is 0.9012: must be the share of a whole number of 100 test images"),
        ({"accuracy_without_tta": 2}, "accuracy_without_tta is 2: must be the share of a whole number"),
        ({"multiplications": 10**9}, f"multiplications is 1000000000: these settings come to {row['multiplications']}"),
        ({"epochs": 1}, "epochs is 1: must be 2"),
        ({"epochs": 3}, "epochs is 3: must be 2"),
        ({"num_train": 500}, "num_train is 500: must be 300, by data.val_size"),
        ({"num_train": 200}, "num_train is 200: must be 300, by data.val_size"),
        ({"num_train": 299}, "num_train is 299: must be 300, as in the other rows"),
        ({"num_test": 50}, "num_test is 50: must be 100"),
        ({"seconds": 0.001}, "seconds is 0.001: must be more than train_seconds"),
        ({"seed": 7}, "seed is 7: must be 10, the next one"),
    ]
    rows = [row | {"seed": seed} | values for seed, (values, _) in enumerate(wrong)]
    write(made, [head, *rows])
    found = problems(made, capsys)
    for line, (_, expected) in enumerate(wrong, start=2):
        assert any(text.startswith(f"{line}: {expected}") for text in found), (expected, found)
    write(made, [head, *lines(made)[1:2]])
    assert "1: there are 1 seeds: at least 3 are needed" in problems(made, capsys)


def test_each_rule_that_the_settings_break_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    settings = head["settings"]
    head |= {"data": "0" * 64}
    settings["trainer"] |= {"limit_test_batches": 5, "max_time": "00:00:05:00", "max_epochs": -1}
    settings["model"] |= {"weights": "best.ckpt", "widgets": 3, "tta": "none"}
    write(made, [head, *rows])
    found = problems(made, capsys)
    for expected in (
        f"1: data is {'0' * 64}, which is not the checksum of CIFAR-10",
        "1: settings: trainer.limit_test_batches is 5: must be None",
        "1: settings: trainer.max_time is 00:00:05:00: must be None",
        "1: settings: trainer.max_epochs is -1: must be a number of epochs",
        "1: settings: model.weights is best.ckpt: must be None",
        "1: settings: there is no --model.widgets",
    ):
        assert any(text.startswith(expected) for text in found), expected


def test_nothing_that_an_entry_names_is_imported(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    head["settings"]["model"]["net"]["class_path"] = "antigravity.Net"
    head["settings"]["trainer"]["callbacks"] = [{"class_path": "antigravity.Callback"}]
    write(made, [head, *rows])
    own, found = problems(made, capsys)
    assert own.startswith("1: settings: model.net is antigravity.Net: must be a network of this project")
    assert found.startswith("1: settings: they do more than set plain options: ")
    assert "model.net.class_path imports 'antigravity.Net'" in found
    assert "trainer.callbacks.class_path runs 'antigravity.Callback'" in found
    assert "antigravity" not in sys.modules


def test_a_setting_of_another_type_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    head["settings"]["model"]["muon_lr"] = None
    write(made, [head, *rows])
    (found,) = problems(made, capsys)
    assert found.startswith("1: settings: ")
    assert "NoneType" in found
    head["settings"]["model"] = None
    write(made, [head, *rows])
    assert all(text.startswith("1: settings: ") for text in problems(made, capsys))


def test_what_is_forbidden_is_found_in_any_spelling(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    timer = {"class_path": "Timer", "init_args": {"duration": "00:00:05:00"}}
    accumulation = {"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {0: 1, 1: 2}}}
    pretrained = {"class_path": "cifar_lit.networks.TorchvisionNet", "init_args": {"name": "resnet18"}}
    head["settings"]["model.net"] = pretrained
    for key, value, expected in (
        ("trainer.max_time", "00:00:05:00", "trainer.max_time is "),
        ("trainer.callbacks", timer, "trainer.callbacks has a Timer, and by a time limit"),
        ("trainer.callbacks", accumulation, "trainer.callbacks has a GradientAccumulationScheduler, and the steps"),
        ("model.net.init_args.weights", "DEFAULT", "ckpt_path or weights is given: each seed trains from its own"),
    ):
        write(made, [head | {"settings": head["settings"] | {key: value}}, *rows])
        (found,) = problems(made, capsys)
        assert found.startswith(f"1: settings: {expected}")


def test_what_would_break_the_table_is_refused_or_escaped(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines(made)
    other = Path("a](x) b.jsonl")
    write(
        other,
        [head | {"machine": "x |\n| <b>\ud800", "environment": {"OMP_A": "2"}}, *(row | {"gflops": 0} for row in rows)],
    )
    named, *zero = problems(other, capsys)
    assert named == f"1: the file is '{other}': its name must be of the letters a to z, digits, _ and -"
    assert zero == [f"{line}: gflops is 0: must be the rate of the machine" for line in (2, 3, 4)]
    row = table([Entry.read(other)]).splitlines()[2]
    assert row.endswith("| x \\| \\| \\<b\\>\\ud800, OMP\\_A=2, 0 GFLOP/s |")


def test_a_checkpoint_of_a_file_makes_no_entry(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ck.ckpt").touch()
    Path("my.yaml").write_text("ckpt_path: ck.ckpt\n")
    assert main([*COMMAND, "--to", "other", "--config", "my.yaml"]) == 2
    assert "error: --ckpt_path is ck.ckpt: leave it out" in capsys.readouterr().err


def test_a_damaged_entry_is_one_line(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = json.dumps(lines(made)[0])
    for text, expected in (
        ("", "x.jsonl:1: is damaged"),
        ("{", "x.jsonl:1: is damaged"),
        ("[" * 5000, "x.jsonl:1: is damaged"),
        ('{"date": ' + "[" * 99 + "]" * 99 + "}", "x.jsonl:1: is damaged, date is nested too deeply"),
        ("[]", "x.jsonl:1: must have the fields date, settings, "),
        ('{"date": 1}', "x.jsonl:1: must have the fields"),
        (head.replace('"date": "', '"date": 1, "x": "'), "x.jsonl:1: must have the fields"),
        (f"{head}\n{{}}", "x.jsonl:2: must have the fields seed, accuracy, "),
        (
            f"{head}\n{json.dumps(lines(made)[1] | {'seconds': float('nan')})}",
            "x.jsonl:2: seconds is nan: must be a float",
        ),
    ):
        Path("x.jsonl").write_text(text)
        assert main(["check", "x.jsonl", "nowhere.jsonl"]) == 2
        first, second, _ = capsys.readouterr().out.splitlines()
        assert expected in first
        assert second == "nowhere.jsonl cannot be read (No such file or directory)"
    monkeypatch.setattr(record, "RECORDS", Path())
    assert main(["draw"]) == 2
    assert expected in capsys.readouterr().err


def test_draw_writes_the_table_and_the_plot(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (board, record):
        monkeypatch.setattr(module, "README", Path("README.md"))
        monkeypatch.setattr(module, "PLOT", Path("records.png"))
    monkeypatch.setattr(record, "RECORDS", made.parent)
    made.with_name("runs.jsonl").unlink()
    Path("README.md").write_text(f"before\n{BEGIN}old\n{END}after\n")
    assert main(["draw"]) == 0
    text = Path("README.md").read_text()
    assert text == f"before\n{BEGIN}{table([Entry.read(made)])}{END}after\n"
    assert "| [tiny](records/tiny.jsonl) | synthetic | 3 | " in text
    assert "50 GFLOP/s |" in text
    assert Path("records.png").read_bytes().startswith(b"\x89PNG")
    Path("README.md").write_text("nothing")
    assert main(["draw"]) == 2
    assert "has not the lines between which the table is" in capsys.readouterr().err


def summary(made: Path, **values: Any) -> Summary:
    """Summarise ten equal seeds with other values."""
    head, row, *_ = lines(made)
    return Summary(Entry(made, head, [row | values] * 10))


def test_records_are_those_that_nothing_is_as_accurate_for_less(made: Path) -> None:
    best = summary(made, accuracy=0.9, multiplications=10**13, seconds=100.0, gflops=60.0)
    cheap = summary(made, accuracy=0.8, multiplications=10**12, seconds=200.0, gflops=20.0)
    beaten = summary(made, accuracy=0.8, multiplications=10**14, seconds=99.0, gflops=200.0)
    few = summary(made, accuracy=0.99, multiplications=1, seconds=1.0)
    few.num_seeds = 9
    known = summary(made, accuracy=0.99, multiplications=1, seconds=1.0)
    known.name = "fast5"
    ones = [best, cheap, beaten, few, known]
    for one in ones:
        one.images = "JPEG"
    assert [one.cell("multiplications", ones) for one in ones] == ["**10**", "**1**", "100", "1e-12", "1e-12"]
    # 2 * 10^12 are 1 s at 2000
    assert [one.cell("gemm", ones) for one in ones] == ["**3**", "**2**", "9.9", "0.025", "0.025"]
    generated = summary(made, accuracy=0.99)
    assert "*" not in generated.cell("gemm", [generated])


def test_the_checksum_is_of_pixels_and_labels_in_any_order() -> None:
    images, labels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8), torch.tensor([1, 0, 1, 2, 2, 0])
    train, test = Split(images[:4], labels[:4]), Split(images[4:], labels[4:])
    shuffled = torch.tensor([2, 0, 3, 1])
    assert checksum(Split(train.images[shuffled], train.labels[shuffled]), test) == checksum(train, test)
    assert checksum(Split(train.images[shuffled], train.labels), test) != checksum(train, test)
    assert checksum(test, train) != checksum(train, test)
    total = hashlib.sha256()
    for split in (train, test):
        pairs = [bytes([*image.flatten().tolist(), label]) for image, label in zip(*split, strict=True)]
        total.update(b"".join(sorted(hashlib.sha256(pair).digest() for pair in pairs)))
    assert checksum(train, test) == total.hexdigest()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "give make, check or draw, not nothing"),
        (["made"], "give make, check or draw, not made"),
        (["make"], "--name"),
        (["make", "--name", "../x"], "--name is ../x: must be of the letters"),
        (["make", "--name", "x", "--seeds", "many"], "--seeds is 'many': must be a whole number"),
        (["make", "--name", "x", "--seeds", "2"], "--seeds is 2: must be from 3 to 1000"),
        (["make", "--name", "x", "--ckpt_path", "last"], "--ckpt_path is not an option of a record: each seed trains"),
        (
            ["make", "--name", "x", "--seed_everything=1"],
            "--seed_everything is not an option of a record: give",
        ),
        (
            ["make", "--name", "x", "--trainer.logger=true"],
            "--trainer.logger is not an option of a record: it is",
        ),
        (["make", "--name", "x", "--trainer.accelerator", "gpu"], "--trainer.accelerator is not an option of a record"),
        (["make", "--name", "x", "--model.widgets", "3"], "--model.widgets"),
        (
            ["make", "--name", "x", "--model.net", "tests.helpers.networks.WideNet"],
            "must be a network of this project",
        ),
        (["make", "--name", "x", "--trainer.max_epochs=-1"], "trainer.max_epochs is -1: must be a number of epochs"),
        (
            ["make", "--name", "x", "--to", "/dev/null/x"],
            "--to is /dev/null/x: it cannot be written",
        ),
        (["check", "nowhere.jsonl", "--all"], "--all"),
        (["draw", "x"], "unrecognized arguments: x"),
    ],
)
def test_a_bad_argument_is_one_line(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch)
    assert main([*args, "--data.source=synthetic"] if args[:1] == ["make"] else args) == 2
    line = capsys.readouterr().err.partition("error: ")[2]
    assert line.count("\n") == 1, line
    assert expected in line


def test_other_images_are_refused_before_anything_is_trained(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["make", "--name", "x", *tiny_args]) == 2
    assert "the images have 3 classes: must be those of CIFAR-10, which has ten" in capsys.readouterr().err
    monkeypatch.setattr(Synthetic.__init__, "__kwdefaults__", {"num_train": 40, "num_test": 10, "seed": 0})
    assert main(["make", "--name", "x", "--data.source", "synthetic"]) == 2
    assert "is not the checksum of CIFAR-10" in capsys.readouterr().err


def test_the_committed_entries_keep_the_rules_and_are_those_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0, capsys.readouterr().out
    assert RECORDS.is_dir()  # where to copy one
    entries = [Entry.read(path) for path in sorted(RECORDS.glob("*.jsonl"))]
    text = board.README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table(entries)  # else: python scripts/record.py draw


@pytest.mark.slow
def test_each_seed_is_a_process_of_its_own() -> None:
    quick = ["--recipe", "quick", "--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1"]
    assert main(["make", "--name", "quick", "--seeds", "3", "--to", "to", *quick]) == 0
    assert main(["check", "to/quick.jsonl"]) == 0
    assert all(row["seconds"] > 1 for row in lines(Path("to/quick.jsonl"))[1:])  # Python's start is charged


def test_a_last_batch_of_one_image_is_not_counted() -> None:
    cli = check(["--data.source=synthetic", "--data.batch_size=8"], own=())
    assert count(cli, num_epochs=1, num_train=17) == count(cli, num_epochs=1, num_train=16)
    assert count(cli, num_epochs=1, num_train=18) != count(cli, num_epochs=1, num_train=16)
