"""Resuming: which run, in which folder, and with which options."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from cifar_lit.cli.fit import find_tested
from cifar_lit.cli.resume import is_tested
from cifar_lit.commands.trial import train
from cifar_lit.main import main
from cifar_lit.run import Run
from tests.helpers.images import tiny_files, write_files
from tests.helpers.processes import LAST, at_step, curves, state_of
from tests.helpers.runs import EPOCHS, FEW_EPOCHS, RUN, Refused, read_metrics, read_results, table_of
from tests.helpers.stored import changed


def stop(args: list[str], step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(step, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(args) == 143


def test_a_run_that_was_moved_knows_its_best(run: str, tiny_args: list[str], tmp_path: Path) -> None:
    undisturbed = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    stop(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "3"], 8)
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    RUN.rename(moved)
    assert main(["fit", "--ckpt_path", str(moved / "checkpoints/last.ckpt")]) == 0
    assert (state_of(moved / "checkpoints/last.ckpt"), read_metrics(moved)) == undisturbed
    assert not RUN.exists()


@pytest.mark.parametrize("step", [8, pytest.param(6, marks=pytest.mark.slow)])
def test_a_checkpoint_away_from_its_run_resumes_in_a_new_folder(step: int, run: str, tiny_args: list[str]) -> None:
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    options = ["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "3"]
    stop(options, step)
    LAST.rename("kept.ckpt")
    before = LAST.with_name("best.ckpt").read_bytes()
    assert main([*options, "--ckpt_path", "kept.ckpt"]) == 0
    new = Path("lightning_logs/version_1")
    # Its best is that of the epochs in its own folder; all else is as in a run that was not stopped.
    ended, accuracies = state_of(new / "checkpoints/last.ckpt"), curves(new)["Accuracy/val"]
    del undisturbed["best"], ended["best"]
    assert ended == undisturbed
    assert read_metrics(new)["Accuracy/val"] == pytest.approx(max(accuracy for _, accuracy in accuracies))
    assert read_results(new)["checkpoint"] == str(new / "checkpoints/best.ckpt")
    assert LAST.with_name("best.ckpt").read_bytes() == before


def test_an_epoch_of_another_length_is_not_resumed_in_its_middle(tiny_args: list[str], refused: Refused) -> None:
    stop(["fit", *tiny_args, *EPOCHS], 3)
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.limit_train_batches", "5"])
    assert code == 2
    expected = "--trainer.limit_train_batches: the checkpoint was saved in the middle of an epoch of 6 batches, and "
    assert line == f"error: {expected}there are 5: give the same"
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


def test_more_epochs_than_it_began_with(
    run: str, tiny_args: list[str], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert main(again) == 0
    assert "3 epochs in" in capsys.readouterr().out
    resumed = state_of()["state_dict"], curves(), read_metrics()
    code, line = refused(again)
    assert code == 2
    assert line == f"error: --trainer.max_epochs is 3, and {LAST} has finished 3 epochs: give more"
    shutil.rmtree("lightning_logs")
    assert main(["fit", *tiny_args, *EPOCHS, "--seed_everything", "3"]) == 0
    assert (state_of()["state_dict"], curves(), read_metrics()) == resumed


def test_a_run_that_was_killed_before_its_test_is_tested(run: str) -> None:
    undisturbed = read_metrics()
    (RUN / "results.json").unlink()
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert read_metrics() == undisturbed
    counted = torch.load(LAST, weights_only=True)["callbacks"]["Throughput"]
    assert counted["num_images"] == 2 * 48
    results = read_results()
    seconds = results["train_seconds"] - counted["validation_seconds"]
    assert results["images_per_second"] == pytest.approx(counted["num_images"] / seconds)
    assert results["images_per_second"] > 0


@pytest.mark.parametrize("is_better", [True, False])
def test_a_longer_training_that_was_stopped_before_its_test_is_tested(is_better: bool, run: str) -> None:
    before = read_results()
    with changed("best.ckpt") as checkpoint:
        for key, state in checkpoint["callbacks"].items():
            if key.startswith("Best"):
                score = torch.tensor(-1.0 if is_better else 2.0)
                state |= {"best_model_score": score, "kth_value": score}
                state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    stop(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"], 6)  # the last step of epoch 3
    assert torch.load(LAST, weights_only=True)["global_step"] == 18
    assert read_results() == before
    assert (Run(RUN).own_results is None) == is_better
    assert main(["fit", "--ckpt_path", "last"]) == 0
    after = read_results()
    assert (after["epochs"], after["step"]) == (3, 18 if is_better else before["step"])


def test_a_test_counts_for_the_weights_that_it_scored(run: str) -> None:
    assert is_tested(Run(RUN))
    best = RUN / "checkpoints/best.ckpt"
    with changed("best.ckpt") as checkpoint:
        checkpoint["global_step"] += 1
    assert not is_tested(Run(LAST))
    best.write_bytes(b"damaged")
    assert is_tested(Run(LAST))
    best.unlink()  # nothing else is known than the results
    assert is_tested(Run(RUN))


@pytest.mark.parametrize("logger", ["false", pytest.param("CSVLogger", marks=pytest.mark.slow)])
def test_a_run_without_tensorboard_resumes_in_its_folder(logger: str, tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--trainer.logger", logger]
    options += ["--trainer.logger.save_dir", "csv"] * (logger == "CSVLogger")
    assert main([*options, "--trainer.max_epochs", "1"]) == 0
    results = read_results()
    assert results["epochs"] == 1
    trust = ["--trust_run"] * (logger == "CSVLogger")  # it writes outside of the run's folder
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *trust]) == 0
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert read_results()["epochs"] == 2
    assert {path.name for path in RUN.iterdir()} >= {"checkpoints", "config.yaml", "results.json"}
    assert not list(Path().rglob("*tfevents*"))
    assert not list(Path("csv").rglob("*.ckpt"))


def test_last_is_the_run_that_was_saved_last(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RUN, RUN.with_name("version_1"))
    assert main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3"]) == 0
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    assert f"resuming {LAST}: 3 epochs are done (18 steps)" in capsys.readouterr().out
    assert read_results()["epochs"] == 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--model.lr", "0.5"], "lr 0.01 (given: 0.5)"),
        (["--data.split_seed", "7"], "split_seed 0 (given: 7)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings_of_model_and_data_are_refused(
    run: str, tiny_args: list[str], option: list[str], expected: str, refused: Refused
) -> None:
    path = str(RUN / "checkpoints/last.ckpt")
    options = [*tiny_args, "--data.batch_size", "8", "--seed_everything", "3", "--ckpt_path", path, *option]
    code, line = refused(["fit", *options])
    assert code == 2
    assert line == (
        f"error: --ckpt_path {path} resumes with its own settings of model and data: {expected}; "
        "give the same, or leave them out"
    )
    assert not Path("lightning_logs/version_1").exists()


def test_a_run_of_before_an_option_has_its_default(run: str, refused: Refused) -> None:
    def without(part: Any) -> None:
        for name in ("mixup", "class_weights"):
            part.pop(name, None)

    checkpoint, config = torch.load(LAST, weights_only=True), yaml.safe_load((RUN / "config.yaml").read_text())
    for part in (checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]):
        without(part)
    for part in (config["model"], config["data"]):
        without(part)
    torch.save(checkpoint, LAST)
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    again = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]
    for option, expected in (
        (["--data.mixup", "0.2"], "mixup 0.0 (given: 0.2)"),
        (["--model.class_weights", "balanced"], "class_weights None (given: balanced)"),
    ):
        code, line = refused([*again, *option])
        assert (code, expected in line) == (2, True), line
    assert main(again) == 0


def test_a_network_that_got_an_option_since_resumes(tiny_args: list[str], refused: Refused) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--model.net", "FastCNN", "--model.net.widths", "[8,16]"]
    assert main([*options, "--trainer.max_epochs", "1"]) == 0
    checkpoint, config = torch.load(LAST, weights_only=True), yaml.safe_load((RUN / "config.yaml").read_text())
    del (
        checkpoint["hyper_parameters"]["net"]["init_args"]["num_convs"],
        config["model"]["net"]["init_args"]["num_convs"],
    )
    torch.save(checkpoint, LAST)
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--model.net.num_convs", "1"])
    assert (code, "resumes with its own settings of model and data: net " in line) == (2, True), line
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0


def test_a_network_whose_stages_differ_in_depth_resumes(tiny_args: list[str], refused: Refused) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--model.net", "FastCNN", "--model.net.widths", "[8,16]"]
    assert main([*options, "--model.net.num_convs", "[1,2]", "--trainer.max_epochs", "1"]) == 0
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["net"]["init_args"]["num_convs"] == [1, 2]
    again = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    code, line = refused([*again, "--model.net.num_convs", "[2,1]"])
    assert (code, "resumes with its own settings of model and data: net " in line) == (2, True), line
    assert main(again) == 0
    assert main(["test", str(RUN)]) == 0
    assert main(["explain", "--model.net", "FastCNN", "--model.net.num_convs", "[1,2,3]"]) == 0


def test_the_data_may_have_moved(run: str, tiny_root: Path) -> None:
    tiny_root.rename("moved")
    options = ["--data.root", "moved", "--data.cache_dir", "other", "--trainer.max_epochs", "3"]
    assert main(["fit", "--ckpt_path", str(RUN), *options]) == 0
    assert read_results()["epochs"] == 3


def test_in_another_working_folder_the_images_are_still_those_of_the_run(
    run: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """Its file of settings has the folder as it was typed."""
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    config["data"] |= {"root": "tiny", "cache_dir": "cache"}
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    write_files(Path("elsewhere/tiny"), tiny_files(8, 2))
    monkeypatch.chdir("elsewhere")
    again = ["fit", "--ckpt_path", f"../{RUN}", "--trainer.max_epochs", "3"]
    assert main(again) == 0
    assert not Path("cache").exists()
    Path("mine.yaml").write_text("data: {root: tiny}")
    again[-1] = "4"
    for given in (["--data.root", "tiny"], ["--config", "mine.yaml"]):
        code, line = refused([*again, *given])
        expected = f"--data.root {Path('tiny').resolve()}: the training images are not those of the run"
        assert (code, expected in line) == (2, True), line


def test_a_project_that_was_moved_with_its_images_resumes_there(run: str, tiny_root: Path) -> None:
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    (RUN / "config.yaml").write_text(yaml.safe_dump(config | {"data": config["data"] | {"root": "moved"}}))
    tiny_root.rename("moved")
    assert main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3"]) == 0


def test_other_images_and_a_checkpoint_that_knows_none_are_refused(run: str, tiny_root: Path, refused: Refused) -> None:
    before = sorted((path, path.read_bytes()) for path in (RUN / "checkpoints").iterdir())
    again = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3"]
    image = tiny_root / "train/dark/0.jpg"
    image.rename(tiny_root / "train/bright/moved.jpg")
    code, line = refused(again)
    assert code == 2
    assert f"error: --data.root {tiny_root}: the training images are not those of the run (now " in line
    assert sorted((path, path.read_bytes()) for path in (RUN / "checkpoints").iterdir()) == before
    checkpoint = torch.load(LAST, weights_only=True)
    del checkpoint["CIFAR10DataModule"]
    torch.save(checkpoint, LAST)
    code, line = refused(again)
    assert code == 2
    assert f"{LAST} was saved by an older version, which split the images otherwise: start a new run" in line


def test_a_finished_run_has_nothing_left_to_train(run: str, tiny_args: list[str], refused: Refused) -> None:
    path = str(RUN / "checkpoints/last.ckpt")
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "3", "--ckpt_path", path])
    assert code == 2
    assert f"--trainer.max_epochs is 2, and {path} has finished 2 epochs: give more" in line


def test_a_bad_checkpoint_is_named(tiny_args: list[str], refused: Refused) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", "--ckpt_path", "text.ckpt"])
    assert code == 2
    assert "text.ckpt is not a checkpoint of this project" in line


def test_the_last_run_is_found_in_the_folder_of_a_file(tiny_args: list[str], refused: Refused) -> None:
    Path("mine.yaml").write_text("trainer: {default_root_dir: there, max_epochs: 1}")
    args = ["fit", *tiny_args, "--data.batch_size", "8", "--no_report", "--config", "mine.yaml"]
    assert main(args) == 0
    assert main([*args, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert [path.name for path in Path("there/lightning_logs").iterdir()] == ["version_0"]
    code, line = refused([*args, "--ckpt_path", "last", "--trainer.default_root_dir", "."])
    assert (code, "--ckpt_path last: no run in lightning_logs" in line) == (2, True), line


def test_without_a_run_there_is_no_last_one(tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, "--ckpt_path", "last"])
    assert (code, "--ckpt_path last: no run in lightning_logs" in line) == (2, True), line
    Path("last.yaml").write_text("ckpt_path: last\n")
    code, line = refused(["fit", *tiny_args, "--config", "last.yaml"])
    assert (code, "--ckpt_path last: give that on the command line" in line) == (2, True), line


def test_a_run_of_the_same_name_in_the_working_folder_is_left_alone(
    run: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("lightning_logs", "elsewhere/lightning_logs")
    monkeypatch.chdir("elsewhere")
    before = (RUN / "checkpoints/best.ckpt").read_bytes()
    (RUN / "checkpoints/best.ckpt").write_bytes(before[:1000])  # to test it would fail
    assert main(["fit", "--ckpt_path", f"../{RUN}", "--trainer.max_epochs", "3"]) == 0
    assert (RUN / "checkpoints/best.ckpt").read_bytes() == before[:1000]
    assert read_results(Path("..") / RUN)["checkpoint"] == f"../{RUN}/checkpoints/best.ckpt"


def test_a_checkpoint_whose_best_is_lost_is_tested_itself_where_nothing_was_validated_since(
    run: str, tiny_args: list[str]
) -> None:
    (RUN / "checkpoints/last.ckpt").rename("alone.ckpt")
    shutil.rmtree("lightning_logs")
    options = [*tiny_args, "--data.batch_size", "8", "--no_report", "--seed_everything", "3"]
    rest = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "9"]
    assert main(["fit", *options, *rest, "--ckpt_path", "alone.ckpt"]) == 0
    results = read_results()
    assert (results["checkpoint"], results["best_epoch"]) == (str(LAST), None)
    assert main(["test", str(RUN)]) == 0


def requeued(monkeypatch: pytest.MonkeyPatch, *, factor: float = 1.0) -> None:
    """Make a job of SLURM of this process, in a folder where a job was put into the queue again."""
    checkpoint = torch.load(LAST, weights_only=True)
    for name, weights in checkpoint["state_dict"].items():
        if name.startswith("net."):
            weights.mul_(factor)
    torch.save(checkpoint, "hpc_ckpt_1.ckpt")
    job = {"JOB_ID": "77", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**job, "JOB_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_job_that_was_requeued_tests_its_best_weights(
    run: str, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        requeued(patch)
        options = ["--model.lr", "0.05", "--seed_everything", "3", "--trainer.devices", "1"]
        assert main(["fit", *tiny_args, *EPOCHS, *options]) == 0
    printed = capsys.readouterr().out
    version_1 = RUN.with_name("version_1")
    assert read_results(version_1)["epochs"] == 3  # and the first two of them before
    assert main(["test", str(version_1)]) == 0
    assert table_of(capsys.readouterr().out) == table_of(printed)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_in_a_job_the_weights_that_are_named_are_scored(
    command: str, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(RUN)]) == 0
    expected = capsys.readouterr().out
    requeued(monkeypatch, factor=0)
    assert main([command, str(RUN), "--trainer.devices", "1"]) == 0
    assert table_of(capsys.readouterr().out) == table_of(expected)


def test_a_trial_in_a_job_trains_from_the_start(
    run: str, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued(monkeypatch)
    options = [*tiny_args, "--trainer.max_epochs", "1", "--data.batch_size", "8"]
    row = train(options, val_images=None, save=None)
    assert (row["epochs"], row["steps"]) == (1, 6)
    assert main(["fit", *options, "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_all_processes_test_the_checkpoint_that_the_first_one_finds(is_there: bool, tmp_path: Path) -> None:
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    for path in (best, last) if is_there else ():
        path.touch()
    told: list[Any] = []

    def broadcast(found: Any) -> Any:
        told.append(found)
        return last, False

    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=broadcast))
    saver: Any = SimpleNamespace(path=last, is_changed_at_end=False)
    assert find_tested(trainer, SimpleNamespace(best_model_path=str(best)), saver) == (last, False)  # type: ignore[arg-type]
    assert told == [(best, True) if is_there else (None, False)]
