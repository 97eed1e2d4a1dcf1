"""``fit``, in process: what a run is made of, and that its numbers agree with each other."""

import itertools
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from cifar_lit.callbacks.history import COLUMNS
from cifar_lit.cli.fit import write
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.loggers import BEST_METRIC
from cifar_lit.main import main
from cifar_lit.metrics import wilson_interval
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.recipes import RECIPES
from cifar_lit.run import Run
from tests.helpers.processes import script
from tests.helpers.results import make_results
from tests.helpers.runs import FEW_EPOCHS, RUN, read_metrics, read_results, table_of

FIELDS = {
    *("Accuracy/test", "Loss/test", "Accuracy/val", "Loss/val", "source", "num_train", "num_val", "num_test"),
    *("num_classes", "num_parameters", "seed", "epochs", "train_seconds", "images_per_second", "device", "versions"),
    *("command", "best_epoch", "checkpoint", "recipe", "network"),
}


LARGE = {"cifar100", "fast", "fast10", "fast5", "gpu94", "resnet18", "small", "strong"}
"""Recipes with a network that takes long on a CPU; tests/callbacks/test_saver.py runs fast with fewer channels."""


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in sorted(RECIPES)]
)
def test_every_recipe_fits_and_tests(recipe: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # On a CPU without bfloat16 test scores in float32; so does a fit whose precision it is, to the last digit.
    few_steps = ["--data.batch_size", "24", "--trainer.precision", "32-true"]
    assert main(["fit", "--recipe", recipe, *tiny_args, *FEW_EPOCHS, *few_steps]) == 0
    fitted = capsys.readouterr().out
    assert read_results()["recipe"] == recipe
    assert read_results()["epochs"] == 2
    assert main(["test", str(RUN)]) == 0
    assert table_of(capsys.readouterr().out) == table_of(fitted)


def test_a_run_leaves_its_configuration_checkpoints_events_and_results(reported_run: str) -> None:
    names = {path.relative_to(RUN).as_posix().split(".out.tfevents")[0] for path in RUN.rglob("*") if path.is_file()}
    expected = {"config.yaml", "hparams.yaml", "metrics.csv", "results.json", "report.html", "events"}
    assert names == expected | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    results = read_results()
    assert results.keys() >= FIELDS
    assert (results["num_train"], results["num_val"], results["num_test"]) == (48, 12, 24)
    assert (results["num_classes"], results["seed"], results["epochs"]) == (3, 3, 2)
    assert results["num_parameters"] == 145_578 - 7 * 65
    assert results["source"] == "images"
    assert results["command"].startswith("cifar-lit fit --data.source images")
    assert results["device"].startswith("cpu")
    assert f"{results['Accuracy/test']:.4f}" in table_of(reported_run)
    assert "CIFAR-10" not in reported_run
    assert f"cifar-lit test {RUN}" in reported_run
    assert "Tip" not in reported_run
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["data"]["batch_size"] == 8


def raw_events() -> list[Any]:
    return [event for path in RUN.glob("events*") for event in EventFileLoader(str(path)).Load()]


def test_tensorboard_has_graph_curves_hyperparameters_and_images(reported_run: str) -> None:
    events = EventAccumulator(str(RUN)).Reload()
    tags = events.Tags()
    nodes = {node.name: node for node in events.Graph().node}
    assert any("TutorialCNN/Sequential[layers]/Conv2d[conv1]" in name for name in nodes)
    (images,) = [node for node in nodes.values() if node.op == "IO Node" and node.name.startswith("input")]
    shape = images.attr["_output_shapes"].list.shape[0].dim
    assert [dim.size for dim in shape] == [64, 3, 32, 32]
    assert sum(event.HasField("graph_def") for event in raw_events()) == 1
    assert sorted(tags["images"]) == ["ConfusionMatrix/test", "Errors/test", "Filters"]
    results = read_results()
    for tag in ("Loss/train", "Accuracy/train", "Loss/val", "Accuracy/val"):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2], tag  # one for each epoch
        if tag.endswith("/val"):
            assert results[tag] == pytest.approx(points[results["best_epoch"] - 1].value)
    assert [point.value for point in events.Scalars("lr")] == pytest.approx([0.01, 0.01])
    # No curves of one point: a test is a table. Only what TensorBoard compares runs by is a number.
    assert {*tags["scalars"]} == {*COLUMNS[3:], BEST_METRIC}
    assert [point.value for point in events.Scalars(BEST_METRIC)] == pytest.approx([results["Accuracy/val"]])
    (table,) = events.Tensors("Metrics/test/text_summary")
    rows = table.tensor_proto.string_val[0].decode().splitlines()
    assert f"| Accuracy/test | {results['Accuracy/test']:.4f} |" in rows
    assert f"| ClassAccuracy/test/dark | {results['ClassAccuracy/test/dark']:.4f} |" in rows


def test_tensorboards_page_of_hyperparameters_has_the_few_that_matter_and_hparams_yaml_all(run: str) -> None:
    plugin = EventAccumulator(str(RUN)).Reload().SummaryMetadata("_hparams_/session_start_info").plugin_data
    shown = parse_session_start_info_plugin_data(plugin.content).hparams
    values = {name: shown[name].string_value or shown[name].number_value for name in shown}
    assert {**values, "lr": pytest.approx(0.01)} == {
        **{"recipe": "tutorial", "seed": 3, "epochs": 2, "net": "TutorialCNN", "lr": pytest.approx(0.01)},
        **{"momentum": 0, "weight_decay": 0, "schedule": "constant", "muon_lr": 0, "label_smoothing": 0},
        **{"batch_size": 8, "crop_padding": 0, "flip": "none", "cutout": 0},
    }
    saved = yaml.safe_load((RUN / "hparams.yaml").read_text())
    best = ImageClassifier.load_from_checkpoint(RUN / "checkpoints/best.ckpt", weights_only=True)
    assert {**best.hparams, "batch_size": 8, "seed": 3}.items() <= saved.items()


def test_a_logger_that_fails_loses_no_results() -> None:
    saved: list[object] = []

    class Logger:
        def save(self) -> None:
            raise ConnectionError

    cli: Any = SimpleNamespace(model=SimpleNamespace(predictions=None), datamodule=None, config={"report": False})
    trainer: Any = SimpleNamespace(logger=None, loggers=[Logger()])
    run: Any = SimpleNamespace(save_results=saved.append)
    results = make_results({"Accuracy/test": 0.5})
    with pytest.raises(ConnectionError):
        write(cli, trainer, run, results)
    assert saved == [results]


def test_a_report_of_before_is_not_that_of_a_longer_training(
    reported_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"report      {RUN}/report.html" in reported_run
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", "--no_report"]) == 0
    assert "report  " not in capsys.readouterr().out


def test_the_best_checkpoint_rebuilds_the_model_that_was_tested(run: str) -> None:
    best = Run(RUN)
    assert best.file == RUN / "checkpoints/best.ckpt"
    assert str(best.file) == read_results()["checkpoint"]
    model, datamodule = best.model(), best.datamodule()
    assert model.classes == ["bright", "dark", "green"]
    assert isinstance(model.net, TutorialCNN)
    for stage, split, name in (("fit", "val", "val"), ("test", "test", "test")):
        datamodule.setup(stage)
        images, labels = getattr(datamodule, split)
        log_probs = model.predict(images.permute(0, 3, 1, 2)).log()
        results = read_results()
        assert results[f"Accuracy/{name}"] == pytest.approx(float((log_probs.argmax(1) == labels).double().mean()))
        assert results[f"Loss/{name}"] == pytest.approx(-float(log_probs[torch.arange(len(labels)), labels].mean()))


def test_after_the_training_each_test_image_is_seen_once_and_no_other(
    tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, int]] = []
    forward = ImageClassifier.forward

    def count(module: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
        seen.append((module.trainer.state.fn, len(images)))
        return forward(module, images)

    monkeypatch.setattr(ImageClassifier, "forward", count)
    assert main(["fit", *tiny_args, *FEW_EPOCHS]) == 0
    assert sum(number for stage, number in seen if stage == "test") == 24
    assert {stage for stage, _ in seen} == {"fit", "test"}  # the validation metrics are those of the training


def agrees_with_itself(num_test: int) -> None:
    """The numbers of a test belong to the same images and predictions."""
    results = read_results()
    confusion = torch.tensor(results["Confusion/test"])
    num_correct = int(confusion.diag().sum())
    assert results["num_test"] == int(confusion.sum()) == num_test
    assert results["Accuracy/test"] == num_correct / num_test
    assert results["AccuracyInterval/test"] == list(wilson_interval(num_correct, num_test))
    recalls = [results[f"ClassAccuracy/test/{name}"] for name in ("bright", "dark", "green")]
    in_class = confusion.sum(1)
    assert recalls == pytest.approx((confusion.diag() / in_class.clamp(min=1)).tolist())


def test_the_numbers_are_those_of_the_images_that_were_tested(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 5})
    limits = ["--trainer.limit_test_batches", "3", "--trainer.limit_val_batches", "2"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *limits]) == 0
    agrees_with_itself(15)
    assert read_results()["num_val"] == 10
    assert "48 train, a part (10 of 12) of validation, a part (15 of 24) of test\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_a_training_in_bfloat16_learns_and_agrees_with_itself(tiny_args: list[str]) -> None:
    options = [*FEW_EPOCHS, "--trainer.max_epochs", "6", "--model.lr", "0.05", "--model.tta", "mirror"]
    assert main(["fit", *tiny_args, *options, "--trainer.precision", "bf16-mixed"]) == 0
    assert read_results()["Accuracy/test"] > 0.5
    assert read_results()["TTAAccuracy/test"] > 0.5
    agrees_with_itself(24)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_the_recipe_strong_trains_in_its_own_precision(tiny_args: list[str]) -> None:
    assert main(["fit", "--recipe", "strong", *tiny_args, *FEW_EPOCHS, "--model.net.widths", "[64,64,64]"]) == 0
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == "bf16-mixed"
    weights = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    agrees_with_itself(24)


def test_averaged_weights_are_validated_kept_and_tested(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    averaging = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]
    # The rate leaves the last weights far from the average of all.
    assert main(["fit", *tiny_args, *averaging, *FEW_EPOCHS, "--trainer.max_epochs", "4", "--model.lr", "0.05"]) == 0
    fitted = capsys.readouterr().out
    assert main(["test", str(RUN)]) == 0
    assert table_of(capsys.readouterr().out) == table_of(fitted)
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    averaged, last = (checkpoint[key]["net.layers.conv1.weight"] for key in ("state_dict", "current_model_state"))
    assert float((averaged - last).abs().max()) > 1e-3
    best = max(point.value for point in EventAccumulator(str(RUN)).Reload().Scalars("Accuracy/val"))
    assert read_results()["Accuracy/val"] == pytest.approx(best)  # the one that the checkpoint was chosen by


@pytest.mark.parametrize(
    "options",
    [["--trainer.enable_checkpointing", "false"], ["--trainer.check_val_every_n_epoch", "5"]],
    ids=["no checkpoint", "no validation yet"],
)
def test_averaged_weights_are_tested_without_a_best_checkpoint(options: list[str], tiny_args: list[str]) -> None:
    averaging = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]
    common = ["fit", *tiny_args, *averaging, *FEW_EPOCHS, "--model.lr", "0.05"]
    assert main(common) == 0
    kept = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    assert main([*common, *options]) == 0
    results = read_results(Path("lightning_logs/version_1"))
    model, datamodule = Run(kept).model(), Run(kept).datamodule()
    datamodule.setup("fit")
    datamodule.setup("test")
    for split in ("val", "test"):
        images, labels = getattr(datamodule, split)
        accuracy = (model.predict(images.permute(0, 3, 1, 2)).argmax(1) == labels).double().mean()
        assert results[f"Accuracy/{split}"] == pytest.approx(float(accuracy))


def test_the_options_of_a_network_go_through_the_command_line_into_the_checkpoint(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    net = ["--model.net", "tests.helpers.networks.WideNet", "--model.net.width", "6"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *net]) == 0
    assert f"test again  cifar-lit test {RUN} --trust_run\n" in capsys.readouterr().out
    module = ImageClassifier.load_from_checkpoint(RUN / "checkpoints/best.ckpt", weights_only=True)
    assert module.hparams["net"]["init_args"] == {"width": 6}
    assert module.net.conv.out_channels == 6  # type: ignore[union-attr]
    assert main(["test", str(RUN)]) == 0


def test_a_saved_configuration_runs_again_with_the_same_result(run: str) -> None:
    assert main(["fit", "--config", str(RUN / "config.yaml")]) == 0
    assert read_metrics(Path("lightning_logs/version_1")) == read_metrics()
    assert read_results(Path("lightning_logs/version_1"))["seed"] == 3


def test_the_seed_changes_the_result(run: str, tiny_args: list[str]) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "4"]) == 0
    assert read_results(Path("lightning_logs/version_1"))["Loss/test"] != read_results()["Loss/test"]


def test_without_validation_the_last_checkpoint_is_tested(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0"]
    assert main(["fit", *data, *FEW_EPOCHS]) == 0
    assert [path.name for path in (RUN / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    results = read_results()
    assert results["Accuracy/val"] is None
    assert results["num_val"] == 0
    assert results["best_epoch"] is None
    assert results["checkpoint"].endswith("last.ckpt")


@pytest.mark.parametrize(
    ("option", "num_val"),
    [(["--trainer.limit_val_batches", "0"], 0), (["--trainer.check_val_every_n_epoch", "5"], 12)],
    ids=["no validation", "not yet validated"],
)
def test_where_validation_never_ran_the_last_checkpoint_is_tested(
    option: list[str], num_val: int, tiny_args: list[str]
) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *option]) == 0
    results = read_results()
    assert results["checkpoint"].endswith("last.ckpt")
    assert results["num_val"] == num_val
    assert 0 < results["Accuracy/test"] <= 1


def test_the_last_checkpoint_is_that_of_the_last_epoch(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Validation gets worse with each epoch, so that the first one is the best.
    worse = iter([0.9, 0.8, 0.7, 0.6])

    def on_validation_epoch_end(module: ImageClassifier) -> None:
        module.log("Accuracy/val", next(worse))

    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", on_validation_epoch_end)
    options = [*tiny_args, "--data.batch_size", "8", "--no_report", "--trainer.num_sanity_val_steps", "0"]
    assert main(["fit", *options, "--trainer.max_epochs", "3"]) == 0
    epochs = {
        name: torch.load(RUN / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}
    capsys.readouterr()
    assert main(["fit", *options, "--trainer.max_epochs", "4", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")]) == 0
    assert [line[:9] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")] == ["epoch 4/4"]


def test_a_run_goes_under_the_root_that_is_given(tiny_args: list[str], tmp_path: Path) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.default_root_dir", str(tmp_path / "deep")]) == 0
    assert read_results(tmp_path / "deep" / RUN)["epochs"] == 2
    assert not Path("lightning_logs").exists()


def test_logger_checkpoints_bar_and_summary_can_be_switched_off(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    switches = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *switches, "--trainer.enable_model_summary=false"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint  none: the last weights" in out
    assert "epoch 1/2" not in out
    assert not Path("lightning_logs").exists()
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *switches]) == 0  # nothing of the first is in the way of a second


@pytest.mark.parametrize(
    ("logger", "log"),
    [
        (["CSVLogger", "--trainer.logger.save_dir", ".", "--trainer.logger.name", "csv"], "csv/version_0/metrics.csv"),
        (["TensorBoardLogger", "--trainer.logger.save_dir", "tb"], "tb/lightning_logs/version_0/events*"),
        (["false"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_run_has_one_folder_whatever_the_logger(
    logger: list[str], log: str | None, tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*FEW_EPOCHS, "--report", "--trainer.callbacks+", "TQDMProgressBar"]
    assert main(["fit", *tiny_args, *options, "--trainer.logger", *logger]) == 0
    assert f"run         {RUN}\n" in capsys.readouterr().out
    files = {path.relative_to(RUN).as_posix() for path in RUN.rglob("*") if path.is_file()}
    expected = {"config.yaml", "metrics.csv", "results.json", "report.html"}
    assert "<h2>Training</h2>" in (RUN / "report.html").read_text(encoding="utf-8")
    assert files == expected | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    if log:
        assert list(Path().glob(log))
    assert read_results()["epochs"] == 2
    assert main(["test", str(RUN)]) == 0


def test_a_fast_dev_run_writes_nothing(tiny_args: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["fit", *tiny_args, "--trainer.fast_dev_run", "true", "--data.batch_size", "8"]) == 0
    assert [path for path in sorted(Path().rglob("*")) if path not in before and path.parts[0] != "home"] == []


def test_a_normal_run_of_the_script_prints_no_warning(tiny_args: list[str]) -> None:
    done = script([*tiny_args, *FEW_EPOCHS])
    assert done.code == 0, done.err
    # Lightning prints a warning with the file that it comes from, and without the word.
    for word in ("Warning", "warn", "deprecated", "site-packages", "Tip", "http"):
        assert word not in done.out + done.err
    assert "epoch 2/2" in done.out


@pytest.fixture
def some_real_images(real_images: Path, tmp_path: Path) -> Path:
    """Return a tenth of the real images, as an archive."""
    if real_images.is_dir():
        pytest.skip("CIFAR_LIT_IMAGES names a folder")
    with tarfile.open(real_images, "r:*") as archive, tarfile.open(tmp_path / "some.tar", "w") as some:
        files = (member for member in archive if member.isfile())
        for member in itertools.islice(files, 0, None, 10):
            some.addfile(member, archive.extractfile(member))
    return tmp_path / "some.tar"


@pytest.mark.slow
@pytest.mark.realdata
def test_a_hundred_steps_on_some_real_images_learn_more_than_chance(some_real_images: Path) -> None:
    options = ["--data.source", "images", "--data.root", str(some_real_images), "--data.val_size", "500"]
    options += [
        "--trainer.max_epochs",
        "2",
        "--data.batch_size",
        "50",
        "--trainer.limit_train_batches",
        "50",
        "--no_report",
    ]
    assert main(["fit", *options, "--model.lr", "0.02", "--model.momentum", "0.9"]) == 0
    results = read_results()
    assert results["Accuracy/test"] > 0.2  # chance is 0.1
    assert (results["num_train"], results["num_val"]) == (4_500, 500)
    assert results["num_test"] in (500, 1_000)


@pytest.mark.slow
@pytest.mark.realdata
def test_two_hundred_steps_on_real_images_learn_more_than_chance(real_images: Path, real_cache: Path) -> None:
    options = ["--data.source", "images", "--data.root", str(real_images), "--trainer.max_epochs", "1"]
    options += ["--data.cache_dir", str(real_cache), "--trainer.limit_train_batches", "200"]
    assert main(["fit", *options, "--model.lr", "0.02", "--model.momentum", "0.9"]) == 0
    results = read_results()
    assert results["Accuracy/test"] > 0.25  # chance is 0.1
    assert (results["num_train"], results["num_val"]) == (45_000, 5_000)
    assert results["num_test"] in (5_000, 10_000)
    assert results["images_per_second"] > 0


def test_a_synthetic_run_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Synthetic.__init__.__kwdefaults__
    assert defaults is not None
    for name, number in (("num_train", 250), ("num_test", 60)):  # of 25,000 and 5,000
        monkeypatch.setitem(defaults, name, number)
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--data.val_size", "50"]
    assert main(["fit", "--data.source", "synthetic", *few]) == 0
    out = capsys.readouterr().out
    assert "data        synthetic: 200 train, 50 validation, 60 test" in out
    assert "CIFAR" not in out
    assert read_results()["source"] == read_results()["title"] == "synthetic"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.slow
def test_two_processes_write_one_results_file(tiny_root: Path) -> None:
    options = ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "13", *FEW_EPOCHS]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = script([*options, *two])
    assert done.code == 0, done.err
    assert done.out.count("test accuracy per class") == 1
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert read_results()["num_val"] == 13
    agrees_with_itself(24)
