"""The command line, in process: runs from beginning to end, and errors of one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from cifar_lit.cli import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.recipes import RECIPES
from tests.conftest import FEW_EPOCHS, RUN

KEYS = {
    *("Accuracy/test", "Loss/test", "Accuracy/val", "Loss/val", "source", "num_train", "num_val", "num_test"),
    *("num_classes", "num_parameters", "seed", "epochs", "train_seconds", "images_per_second", "device", "versions"),
    "command",
}


def results(run: Path = RUN) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "results.json").read_text())
    return read


def raw_events() -> list[Any]:
    return [event for path in RUN.glob("events*") for event in EventFileLoader(str(path)).Load()]


def table_of(text: str) -> str:
    """Cut the figures out of what a run printed, without the interval, which belongs to the report."""
    lines = text[text.index("validation") : text.index("\ndata")].splitlines()
    return "\n".join(line for line in lines if not line.startswith("95 % interval"))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_fits_and_tests(recipe: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # The command test scores in float32; so does a fit whose precision it is, to the last digit.
    few_steps = ["--data.batch_size", "24"]
    main(["fit", "--recipe", recipe, *tiny_args, *FEW_EPOCHS, *few_steps, "--trainer.precision", "32-true"])
    fitted = capsys.readouterr().out
    assert results()["recipe"] == recipe
    assert results()["epochs"] == 2
    main(["test", str(RUN)])
    assert table_of(capsys.readouterr().out) == table_of(fitted)


def test_a_run_leaves_its_configuration_checkpoints_events_and_results(reported_run: str) -> None:
    names = {path.relative_to(RUN).as_posix().split(".out.tfevents")[0] for path in RUN.rglob("*") if path.is_file()}
    expected = {"config.yaml", "hparams.yaml", "results.json", "report.html", "events"}
    assert names == expected | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    figures = results()
    assert figures.keys() >= KEYS
    assert (figures["num_train"], figures["num_val"], figures["num_test"]) == (48, 12, 24)
    assert (figures["num_classes"], figures["seed"], figures["epochs"]) == (3, 3, 2)
    assert figures["num_parameters"] == 145_578 - 7 * 65
    assert figures["source"] == "images"
    assert figures["command"].startswith("cifar-lit fit --data.source images")
    assert figures["device"].startswith("cpu")
    assert f"{figures['Accuracy/test']:.4f}" in table_of(reported_run)
    assert "CIFAR-10" not in reported_run
    assert f"python scripts/test.py {RUN}" in reported_run
    assert "Tip" not in reported_run
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["data"]["batch_size"] == 8


def test_tensorboard_has_graph_curves_hyperparameters_and_confusion_matrix(reported_run: str) -> None:
    events = EventAccumulator(str(RUN)).Reload()
    tags = events.Tags()
    nodes = {node.name: node for node in events.Graph().node}
    assert any("TutorialCNN/Sequential[layers]/Conv2d[conv1]" in name for name in nodes)
    (images,) = [node for node in nodes.values() if node.op == "IO Node" and node.name.startswith("input")]
    shape = images.attr["_output_shapes"].list.shape[0].dim
    assert [dim.size for dim in shape] == [64, 3, 32, 32]
    assert sum(event.HasField("graph_def") for event in raw_events()) == 1
    assert sorted(tags["images"]) == ["ConfusionMatrix/test", "Filters", "Mistakes/test"]
    figures = results()
    for tag, split in (("Loss/train", None), ("Accuracy/train", None), ("Loss/val", "val"), ("Accuracy/val", "val")):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [0, 1], tag  # one for each epoch
        if split:
            assert figures[tag] in [pytest.approx(point.value) for point in points]
    assert [point.value for point in events.Scalars("lr")] == pytest.approx([0.01, 0.01])
    assert [point.value for point in events.Scalars("Accuracy/test")] == pytest.approx([figures["Accuracy/test"]])
    assert [point.value for point in events.Scalars("hp_metric")] == pytest.approx([figures["Accuracy/val"]])


def test_test_gives_the_same_figures_from_a_run_and_from_a_checkpoint_anywhere(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes((RUN / "checkpoints/best.ckpt").read_bytes())
    before = sorted(Path("lightning_logs").rglob("*"))
    for place in (RUN, RUN / "checkpoints/best.ckpt", moved):
        main(["test", str(place)])
        assert table_of(capsys.readouterr().out) == table_of(run)
    assert sorted(Path("lightning_logs").rglob("*")) == before  # scoring makes no new run


def test_validate_gives_the_validation_figures_and_reads_no_test_image(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.module.ImageClassifier.test_step", None)
    main(["validate", str(RUN)])
    out = capsys.readouterr().out
    assert f"accuracy{results()['Accuracy/val']:>24.4f}" in out
    assert "48 train, 12 validation\n" in out


def test_the_best_checkpoint_is_the_best_on_validation_and_rebuilds_the_model(run: str) -> None:
    path = RUN / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    events = EventAccumulator(str(RUN)).Reload()
    best = max(point.value for point in events.Scalars("Accuracy/val"))
    assert results()["Accuracy/val"] == pytest.approx(best)
    assert checkpoint["hyper_parameters"]["classes"] == ["bright", "dark", "green"]
    module = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    assert isinstance(module.net, TutorialCNN)
    assert module.net(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_the_last_checkpoint_is_the_last_epochs_and_a_run_goes_on_from_it(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Validation gets worse with each epoch, so that the first one is the best.
    worse = iter([0.9, 0.8, 0.7, 0.6, 0.9, 0.7])

    def on_validation_epoch_end(module: ImageClassifier) -> None:
        module.log("Accuracy/val", next(worse))

    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", on_validation_epoch_end)
    options = [*tiny_args, "--data.batch_size", "8", "--trainer.num_sanity_val_steps", "0"]
    main(["fit", *options, "--trainer.max_epochs", "3"])
    epochs = {
        name: torch.load(RUN / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}
    capsys.readouterr()
    worse = iter([0.5, 0.5])
    main(["fit", *options, "--trainer.max_epochs", "4", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")])
    assert [line[:9] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")] == ["epoch 4/4"]


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_a_training_in_bfloat16_learns(tiny_args: list[str]) -> None:
    options = [*FEW_EPOCHS, "--trainer.max_epochs", "6", "--model.lr", "0.05"]
    main(["fit", *tiny_args, *options, "--trainer.precision", "bf16-mixed"])
    assert results()["Accuracy/test"] > 0.5


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_the_recipe_strong_trains_in_its_own_precision(tiny_args: list[str]) -> None:
    main(["fit", "--recipe", "strong", *tiny_args, *FEW_EPOCHS, "--model.net.widths", "[64,64,64]"])
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == "bf16-mixed"
    weights = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_averaged_weights_are_validated_kept_and_tested(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    averaging = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]
    # The rate leaves the last weights far from the average of all.
    main(["fit", *tiny_args, *averaging, *FEW_EPOCHS, "--trainer.max_epochs", "4", "--model.lr", "0.05"])
    fitted = capsys.readouterr().out
    main(["test", str(RUN)])
    assert table_of(capsys.readouterr().out) == table_of(fitted)
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    averaged, last = (checkpoint[key]["net.layers.conv1.weight"] for key in ("state_dict", "current_model_state"))
    assert float((averaged - last).abs().max()) > 1e-3
    best = max(point.value for point in EventAccumulator(str(RUN)).Reload().Scalars("Accuracy/val"))
    assert results()["Accuracy/val"] == pytest.approx(best)  # the one that the checkpoint was chosen by


def test_the_options_of_a_network_go_through_the_command_line_into_the_checkpoint(tiny_args: list[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--model.net", "tests.networks.test_base.WideNet", "--model.net.width", "6"])
    module = ImageClassifier.load_from_checkpoint(RUN / "checkpoints/best.ckpt", weights_only=True)
    assert module.hparams["net"]["init_args"] == {"width": 6}
    assert module.net.conv.out_channels == 6  # type: ignore[union-attr]
    main(["test", str(RUN)])


def test_a_saved_configuration_runs_again_with_the_same_result(run: str) -> None:
    main(["fit", "--config", str(RUN / "config.yaml")])
    again = results(Path("lightning_logs/version_1"))
    for key in ("Accuracy/test", "Loss/test", "Accuracy/val", "Loss/val", "seed"):
        assert again[key] == results()[key]


def test_the_seed_changes_the_result(run: str, tiny_args: list[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "4"])
    assert results(Path("lightning_logs/version_1"))["Loss/test"] != results()["Loss/test"]


def test_without_validation_the_last_checkpoint_is_tested(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0", *FEW_EPOCHS])
    fitted = capsys.readouterr().out
    assert [path.name for path in (RUN / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    assert results()["Accuracy/val"] is None
    assert results()["num_val"] == 0
    main(["test", str(RUN)])
    assert table_of(capsys.readouterr().out) == table_of(fitted)


@pytest.mark.parametrize(
    "option", [["--trainer.limit_val_batches", "0"], ["--trainer.check_val_every_n_epoch", "5"]], ids=lambda o: o[0]
)
def test_where_validation_never_ran_the_last_checkpoint_is_tested(option: list[str], tiny_args: list[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, *option])
    assert results()["checkpoint"].endswith("last.ckpt")
    assert 0 < results()["Accuracy/test"] <= 1


def test_the_logs_go_under_the_root_that_is_given(tiny_args: list[str], tmp_path: Path) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.default_root_dir", str(tmp_path / "deep")])
    assert results(tmp_path / "deep" / RUN)["epochs"] == 2
    assert not Path("lightning_logs").exists()


def test_logger_checkpoints_bar_and_summary_can_be_switched_off(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    switches = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    main(["fit", *tiny_args, *FEW_EPOCHS, *switches, "--trainer.enable_model_summary=false"])
    out = capsys.readouterr().out
    assert "checkpoint  none: the last weights" in out
    assert "epoch 1/2" not in out
    assert not Path("lightning_logs").exists()
    main(["fit", *tiny_args, *FEW_EPOCHS, *switches])  # a second one finds nothing of the first in its way


def test_another_logger_gets_the_results_too(tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", ".", "--trainer.logger.name", "csv"]
    main(["fit", *tiny_args, *FEW_EPOCHS, *logger, "--trainer.callbacks+", "TQDMProgressBar"])
    assert results(Path("csv/version_0"))["epochs"] == 2
    assert "run         csv/version_0" in capsys.readouterr().out


def test_a_fast_dev_run_writes_nothing(tiny_args: list[str]) -> None:
    main(["fit", *tiny_args, "--trainer.fast_dev_run", "true", "--data.batch_size", "8"])
    assert not list(Path().rglob("results.json"))


def test_a_normal_run_of_the_script_prints_no_warning(tiny_root: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "fit.py"
    options = ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "12", *FEW_EPOCHS]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True
    )
    # Lightning prints a warning with the file that it comes from, and without the word.
    for word in ("Warning", "warn", "deprecated", "site-packages", "Tip", "http"):
        assert word not in done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout


@pytest.mark.realdata
def test_two_hundred_steps_on_real_images_learn_more_than_chance(real_images: Path, real_cache: Path) -> None:
    options = ["--data.source", "images", "--data.root", str(real_images), "--trainer.max_epochs", "1"]
    options += ["--data.cache_dir", str(real_cache)]
    main(["fit", *options, "--trainer.limit_train_batches", "200", "--model.lr", "0.02", "--model.momentum", "0.9"])
    figures = results()
    assert figures["Accuracy/test"] > 0.25  # chance is 0.1
    assert (figures["num_train"], figures["num_val"]) == (45_000, 5_000)
    assert figures["num_test"] in (5_000, 10_000)
    assert figures["images_per_second"] > 0


def test_a_synthetic_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--data.source", "synthetic", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"])
    out = capsys.readouterr().out
    assert "data        synthetic: 20,000 train, 5,000 validation, 5,000 test" in out
    assert "CIFAR" not in out
    assert results()["source"] == results()["title"] == "synthetic"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_write_one_results_file(tiny_root: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "fit.py"
    options = ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "13", *FEW_EPOCHS]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        [sys.executable, str(script), *options, *two], capture_output=True, text=True, cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy per class") == 1
    figures = results()
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert (figures["num_val"], figures["num_test"]) == (13, 24)
    main(["test", str(RUN)])  # one process scores the same
    assert figures["Accuracy/test"] * 24 == pytest.approx(round(figures["Accuracy/test"] * 24))
