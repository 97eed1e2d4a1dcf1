"""``test``: the metrics of a run, from wherever its checkpoint is."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifar_lit.main import main
from cifar_lit.networks import TutorialCNN
from tests.helpers.processes import environment
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results, table_of
from tests.helpers.stored import changed
from tests.helpers.trainers import note_precisions


def test_the_metrics_are_those_of_the_fit_wherever_the_checkpoint_is(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes((RUN / "checkpoints/best.ckpt").read_bytes())
    before = sorted(Path("lightning_logs").rglob("*"))
    for place in (RUN, RUN / "checkpoints/best.ckpt", moved):
        assert main(["test", str(place)]) == 0
        printed = capsys.readouterr().out
        assert table_of(printed) == table_of(run)
        assert "48 train, 12 validation, 24 test\n" in printed
    assert sorted(Path("lightning_logs").rglob("*")) == before  # scoring makes no new run


def test_without_validation_the_last_checkpoint_is_tested(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0", *FEW_EPOCHS])
    fitted = capsys.readouterr().out
    main(["test", str(RUN)])
    printed = capsys.readouterr().out
    assert table_of(printed) == table_of(fitted)
    assert f"checkpoint  {RUN}/checkpoints/last.ckpt" in printed


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_the_precision_is_that_of_the_run_unless_told_otherwise(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = note_precisions("test", monkeypatch)
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: True)
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.precision", "bf16-mixed"]) == 0
    fitted = capsys.readouterr().out
    (RUN / "config.yaml").write_text("[1, 2")  # the checkpoint knows it
    assert main(["test", str(RUN)]) == 0
    assert table_of(capsys.readouterr().out) == table_of(fitted)
    assert main(["validate", str(RUN)]) == 0
    assert main(["test", str(RUN), "--trainer.precision", "64-true"]) == 0
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: False)
    assert main(["test", str(RUN)]) == 0
    assert used == ["bf16-mixed", "bf16-mixed", "64-true", "32-true"]


def test_the_options_of_the_data_the_model_and_the_trainer(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny").rename("elsewhere")
    options = ["--data.root", "elsewhere", "--data.cache_dir", "cached", "--model.tta", "mirror_shift"]
    trainer = ["accelerator=cpu", "devices=1", "num_nodes=1", "strategy=auto", "precision=64-true"]
    trainer += ["limit_val_batches=0", "limit_test_batches=1.0", "enable_progress_bar=false"]
    assert main(["test", str(RUN), *options, *(f"--trainer.{option}" for option in trainer)]) == 0
    printed = capsys.readouterr().out
    assert "images from" in printed
    assert "48 train, 24 test\n" in printed
    assert any(line.startswith("with TTA") for line in printed.splitlines())
    assert list(Path("cached").iterdir())


def test_the_numbers_are_of_the_images_that_were_scored(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 5})
    main(["test", str(RUN), "--trainer.limit_test_batches", "2", "--trainer.limit_val_batches", "0.5"])
    assert "48 train, a part (5 of 12) of validation, a part (10 of 24) of test\n" in capsys.readouterr().out


def test_a_report_is_written_again(reported_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, results = (RUN / "report.html").read_text(), read_results()
    assert "<h2>Training</h2>" in page
    assert f"report      {RUN}/report.html" in reported_run
    assert sum(map(sum, results["Confusion/test"])) == 24
    (RUN / "report.html").unlink()
    assert main(["test", str(RUN), "--report"]) == 0
    printed = capsys.readouterr().out
    assert f"report      {RUN}/report.html" in printed
    assert table_of(printed) == table_of(reported_run)
    assert (RUN / "report.html").read_text().count("<h2>") == page.count("<h2>")
    again = read_results()
    assert again.keys() == results.keys()
    changed = {name for name in results if again[name] != results[name]}
    assert changed <= {"title"}  # it names the folder of the images
    main(["test", str(RUN), "--report", "--model.tta", "mirror"])
    assert read_results().keys() - results.keys() == {"TTAAccuracy/test"}


def test_a_report_of_a_run_that_died_before_its_test(run: str) -> None:
    (RUN / "results.json").unlink()
    assert main(["test", str(RUN), "--report"]) == 0
    assert read_results()["seed"] is None
    assert f"with the weights in {RUN}/checkpoints/best.ckpt." in (RUN / "report.html").read_text()
    assert main(["test", str(RUN / "checkpoints/last.ckpt"), "--report"]) == 0
    assert "with the last weights." in (RUN / "report.html").read_text()


def test_a_report_says_nothing_of_an_earlier_training(run: str) -> None:
    before = read_results()
    with changed("best.ckpt") as checkpoint:  # as a longer training that was stopped before its test leaves it
        checkpoint["global_step"] += 6
    assert main(["test", str(RUN), "--report"]) == 0
    after = read_results()
    assert (after["step"], after["seed"]) == (before["step"] + 6, before["seed"])
    assert [after[name] for name in ("best_epoch", "epochs", "train_seconds", "command")] == [None] * 4


def test_a_report_that_cannot_be_drawn_loses_no_results(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (RUN / "results.json").unlink()
    monkeypatch.setattr("cifar_lit.commands.test.write_report", lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        main(["test", str(RUN), "--report"])
    assert read_results()["Accuracy/test"] is not None


@pytest.mark.filterwarnings("ignore:.*images are not those of the run")
def test_a_report_needs_a_run_and_all_its_images(run: str, refused: Refused) -> None:
    before = read_results()
    shutil.copy(RUN / "checkpoints/best.ckpt", "alone.ckpt")
    for args, expected in (
        (["alone.ckpt"], "--report needs a run's folder"),
        ([str(RUN), "--trainer.limit_test_batches", "1"], "leave out --trainer.limit_test_batches"),
        ([str(RUN), "--trainer.limit_val_batches", "0"], "leave out --trainer.limit_val_batches"),
    ):
        code, line = refused(["test", *args, "--report"])
        assert code == 2
        assert expected in line
    for split in ("train", "test"):  # less data is a part, too
        for number in (1, 101, 5, 105):
            Path(f"tiny/{split}/dark/{number}.png").unlink(missing_ok=True)
    code, line = refused(["test", str(RUN), "--report"])
    assert code == 1
    assert line == "error: --report: fewer images than before were scored, so results.json is kept"
    assert read_results() == before


def test_a_part_that_a_fit_tested_is_marked_and_replaced_by_the_whole(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 5})
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.limit_test_batches", "2"]) == 0
    assert "48 train, 12 validation, a part (10 of 24) of test\n" in capsys.readouterr().out
    assert (read_results()["num_test"], read_results()["total_test"]) == (10, 24)
    assert main(["test", str(RUN), "--report"]) == 0
    assert "48 train, 12 validation, 24 test\n" in capsys.readouterr().out
    assert (read_results()["num_test"], read_results()["total_test"]) == (24, None)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_random_weights_are_never_scored(command: str, refused: Refused) -> None:
    torch.save(TutorialCNN().state_dict(), "weights.ckpt")
    for args, expected in (
        (["--data.root", "tiny"], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere: no such checkpoint"),
        (["."], ". is neither a run's folder with checkpoints/best.ckpt or last.ckpt, nor an export"),
        (["weights.ckpt"], "weights.ckpt is not a checkpoint of this project"),
    ):
        code, line = refused([command, *args])
        assert code == 2
        assert expected in line


def test_bad_options_end_in_one_line(run: str, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree("tiny", "other")
    for split in ("train", "test"):
        Path(f"other/{split}/dark").rename(f"other/{split}/night")
    for args, expected in (
        (["--data.root", "other"], "was trained for the classes bright, dark, green"),
        (["--data.root", "nowhere"], "--data.root nowhere"),
        (["--model.tta", "rotate"], "--model.tta"),
        (["--model.lr", "1"], "unrecognized arguments: --model.lr"),
        (["--trainer.device", "1"], "did you mean --trainer.devices?"),
        (["--trainer.devices", "99"], "--trainer.devices is 99, and this machine has"),
        (["--trainer.accelerator", "abacus"], "--trainer: You selected an invalid accelerator name"),
        (["--trainer.precision", "7"], "--trainer.precision is 7: must be one of 32-true, 64-true, bf16-mixed"),
        (["--trainer.precision", "auto"], "--trainer.precision is auto: must be one of 32-true, 64-true"),
        (["--trainer.limit_test_batches", "few"], "--trainer.limit_test_batches"),
        (["--trainer.limit_test_batches", "-1"], "--trainer: "),
        (
            ["--trainer.enable_progress_bar", "perhaps"],
            "--trainer.enable_progress_bar is 'perhaps': must be true or false",
        ),
    ):
        code, line = refused(["test", str(RUN), *args])
        assert code == 2
        assert expected in line


def test_a_damaged_results_file_is_named_when_it_would_be_replaced(run: str, refused: Refused) -> None:
    (RUN / "results.json").write_text("{")
    code, line = refused(["test", str(RUN), "--report"])
    assert code == 2
    assert f"{RUN}/results.json is damaged" in line
    assert main(["test", str(RUN)]) == 0  # which does not read it


def test_a_bug_keeps_its_traceback(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.module.ImageClassifier.test_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["test", str(RUN)])


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(run: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cifar_lit", "test", str(RUN)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, env=environment())
    os.close(write)
    assert done.returncode == 0
    assert "error" not in done.stderr.lower()


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_score_the_same_and_one_prints(run: str) -> None:
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "cifar_lit", "test", str(RUN), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment())
    assert done.returncode == 0, done.stderr
    assert table_of(done.stdout) == table_of(run)
    assert done.stdout.count("test accuracy per class") == 1
    assert "12 validation, 24 test\n" in done.stdout
