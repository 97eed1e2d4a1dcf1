"""Runs on disk: what ``Run`` reads, and the folder that is written."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cifar_lit import Run as PublicRun
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.networks import TutorialCNN
from cifar_lit.results import Results
from cifar_lit.run import Run
from cifar_lit.run_writer import RunWriter
from tests.helpers.runs import RUN, Refused, read_results

BEST, LAST = RUN / "checkpoints/best.ckpt", RUN / "checkpoints/last.ckpt"


def change(path: Path, **parts: Any) -> Path:
    """Write a copy of the best checkpoint with other parts."""
    checkpoint = torch.load(BEST, weights_only=True)
    for name, part in parts.items():
        checkpoint[name] = {**checkpoint[name], **part} if isinstance(part, dict) else part
    torch.save(checkpoint, path)
    return path


# Reading.


def test_a_run_has_model_data_configuration_and_results(run: str) -> None:
    assert PublicRun is Run
    read = Run(RUN)
    assert (read.file, read.folder, read.path) == (BEST, RUN, RUN)
    assert read.config == yaml.safe_load((RUN / "config.yaml").read_text())
    assert read.config["ckpt_path"] is None
    assert read.results is not None
    assert read.results.metrics["Accuracy/test"] == read_results()["Accuracy/test"]
    assert read.results.seed == 3
    assert read.model_options["classes"] == ["bright", "dark", "green"]
    assert read.data_options["source"] == "images"
    model = read.model()
    assert isinstance(model.net, TutorialCNN)
    assert not model.training
    assert torch.equal(
        model.state_dict()["net.layers.conv1.weight"], read.checkpoint["state_dict"]["net.layers.conv1.weight"]
    )
    assert read.checkpoint is read.checkpoint  # the file is read once


def test_arguments_of_model_and_data_can_differ(run: str) -> None:
    read = Run(RUN)
    assert read.model(tta="mirror").hparams["tta"] == "mirror"
    assert read.model_options["tta"] == "none"
    assert read.datamodule(batch_size=5).hparams["batch_size"] == 5
    with pytest.raises(UserError, match="was trained for the classes bright, dark, green, and the data has disc"):
        read.datamodule(source="synthetic")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_parameters_are_refused_and_buffers_are_not(value: float, run: str) -> None:
    weights = torch.load(BEST, weights_only=True)["state_dict"]
    bias = torch.full_like(weights["net.layers.conv1.bias"], value)
    bad = change(Path("bad.ckpt"), state_dict={"net.layers.conv1.bias": bias})
    with pytest.raises(UserError, match=r"bad.ckpt is unusable: net.layers.conv1.bias has non-finite values"):
        Run(bad).model()
    assert Run(change(Path("good.ckpt"), state_dict={"mean": torch.full_like(weights["mean"], value)})).model()


def test_a_checkpoint_of_a_run_belongs_to_its_folder(run: str) -> None:
    assert Run(LAST).folder == RUN
    assert Run(LAST).file == LAST
    BEST.unlink()
    assert Run(RUN).file == LAST  # where there is no best
    assert Run(LAST).results == Run(RUN).results


def test_results_are_those_of_one_file_and_step(run: str) -> None:
    results = read_results()
    assert (results["checkpoint"], results["step"]) == (str(BEST), torch.load(BEST, weights_only=True)["global_step"])
    assert Run(RUN).own_results == Run(RUN).results
    assert Run(LAST).own_results is None
    change(BEST, global_step=results["step"] + 1)
    assert Run(RUN).own_results is None
    del results["step"]  # as older versions wrote them
    (RUN / "results.json").write_text(json.dumps(results))
    assert Run(RUN).own_results == Run(RUN).results


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("trainer: {precision: bf16-mixed}", "bf16-mixed"),
        ("trainer: {precision: 16}", "16"),
        ("trainer: {precision: null}", "32-true"),
        ("trainer: [bf16-mixed]", "32-true"),
        ("trainer", "32-true"),
        ("{{{", "32-true"),
    ],
)
def test_the_precision_of_an_older_run_is_that_of_its_settings(config: str, expected: str, run: str) -> None:
    file = RUN / "checkpoints/best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    (RUN / "config.yaml").write_text(config)
    assert Run(RUN).precision == "32-true"  # that of the checkpoint
    del checkpoint["precision"]
    torch.save(checkpoint, file)
    assert Run(RUN).precision == expected


def test_a_checkpoint_elsewhere_is_read_too(run: str) -> None:
    shutil.copy(BEST, "alone.ckpt")
    shutil.rmtree("lightning_logs")
    read = Run("alone.ckpt")
    assert (read.folder, read.config, read.results) == (None, {}, None)
    assert read.model().classes == ["bright", "dark", "green"]
    assert read.datamodule().classes == ["bright", "dark", "green"]


def test_an_export_is_read_too(run: str) -> None:
    pytest.importorskip("safetensors")
    assert main(["export", str(RUN), "--to", "safetensors"]) == 0
    (weights,) = Path().rglob("model.safetensors")
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    for place in (weights, weights.parent):
        read = Run(place)
        assert read.file == weights
        assert (read.config, read.results) == ({}, None)
        assert torch.equal(read.model().predict(images), Run(RUN).model().predict(images))
        with pytest.raises(UserError, match="is an export, which has no data settings: give the run it was made from"):
            read.datamodule()


def test_a_run_whose_test_is_to_come_has_no_results() -> None:
    LAST.parent.mkdir(parents=True)
    LAST.touch()
    assert Run(RUN).config == {}
    (RUN / "config.yaml").write_text("seed_everything: 3")
    assert Run(RUN).config == {"seed_everything": 3}
    assert Run(RUN).results is None


def test_a_name_of_version_0_1_is_understood(run: str) -> None:
    checkpoint = torch.load(BEST, weights_only=True)
    checkpoint["hyper_parameters"]["test_views"] = checkpoint["hyper_parameters"].pop("tta") and "mirror"
    torch.save(checkpoint, "old.ckpt")
    assert Run("old.ckpt").model().hparams["tta"] == "mirror"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nothing", "nothing: no such checkpoint"),
        ("http://host/a.ckpt", "http://host/a.ckpt is a URL: download the checkpoint"),
        (".", r"\. is neither a run's folder with checkpoints/best.ckpt or last.ckpt, nor an export"),
    ],
)
def test_a_place_without_a_run_is_named(path: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Run(path)


def test_a_bad_checkpoint_is_named(run: str, refused: Refused) -> None:
    foreign = change(Path("foreign.ckpt"), hyper_parameters=None)
    cases: list[tuple[Path, str]] = [(foreign, "foreign.ckpt is not a checkpoint of this project")]
    checkpoint = torch.load(BEST, weights_only=True)
    torch.save({**checkpoint, "hyper_parameters": {"width": 3}}, "other.ckpt")
    cases.append((Path("other.ckpt"), "other.ckpt is not a checkpoint of this project: its settings belong to another"))
    torch.save({**checkpoint, "datamodule_hyper_parameters": {"width": 3}}, "data.ckpt")
    cases.append((Path("data.ckpt"), "data.ckpt is not a checkpoint of this project: its settings belong to another"))
    cases.append((change(Path("new.ckpt"), hyper_parameters={"depth": 3}), "does not know: depth"))
    cases.append((change(Path("bad.ckpt"), hyper_parameters={"lr": -1}), "bad.ckpt: `lr` is -1.0: must be above 0"))
    missing = change(Path("missing.ckpt"), state_dict={"net.layers.conv1.weight": torch.zeros(3)})
    cases.append((missing, "missing.ckpt: the weights do not match the network: "))
    net = {"class_path": "evil.Network", "init_args": {}}
    cases.append((change(Path("net.ckpt"), hyper_parameters={"net": net}), "evil.Network is of another package"))
    for path, expected in cases:
        with pytest.raises(UserError) as error:
            Run(path).model()
        assert expected in str(error.value)
        code, line = refused(["test", str(path)])
        assert code == 2
        assert line.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.yaml", "a: [", "config.yaml is damaged: it is not YAML"),
        ("config.yaml", "[1, 2]", "config.yaml is damaged: it holds no settings"),
        ("config.yaml", "\udcff", "config.yaml is no configuration: it is not text in UTF-8"),
        ("results.json", "{", "results.json is damaged: it is not JSON"),
        ("results.json", "\udcff", "results.json is damaged: it is not JSON"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name: str, content: str, expected: str) -> None:
    LAST.parent.mkdir(parents=True)
    LAST.touch()
    (RUN / "config.yaml").write_text("{}")
    (RUN / name).write_bytes(content.encode(errors="surrogateescape"))
    read = Run(RUN)
    with pytest.raises(UserError, match=expected):
        _ = read.config, read.results


# Writing.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_run_has_a_folder_of_its_own() -> None:
    for name in ("version_3", "version_x", "version_03a", "other"):
        Path("logs/lightning_logs", name).mkdir(parents=True)
    writers = [RunWriter.create(Path("logs"), "") for _ in range(2)]
    assert [writer.path.name for writer in writers] == ["version_4", "version_5"]
    for writer in writers:
        writer.close()


def test_a_folder_that_another_process_made_at_the_same_moment_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def slow(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "version_0":
            mkdir(path)  # by the other
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", slow)
    writer = RunWriter.create(Path(), "")
    assert writer.path.name == "version_1"
    writer.close()
    assert names(Path("lightning_logs")) == ["version_0"]


def test_a_folder_in_use_is_refused_until_it_is_released() -> None:
    writer = RunWriter.create(Path(), "config")
    writer.start()
    for _ in range(2):
        with pytest.raises(UserError, match="version_0 is in use by another training: wait for it, or stop it"):
            RunWriter(writer.path, "other", is_new=False)
    writer.close()
    again = RunWriter(writer.path, "other", is_new=False)
    again.close()
    assert names(RUN) == ["config.yaml"]
    assert (RUN / "config.yaml").read_text() == "config"


def test_what_a_killed_process_left_is_removed_when_the_run_is_resumed() -> None:
    writer = RunWriter.create(Path(), "config")
    writer.start()
    writer.close()
    writer.checkpoints.mkdir()
    for path in (
        writer.checkpoints / "last.ckpt",
        writer.checkpoints / ".last.ckpt.1f.part",
        RUN / ".config.yaml.a.part",
    ):
        path.touch()
    RunWriter(RUN, "config", is_new=False).close()
    assert (names(RUN), names(writer.checkpoints)) == (["checkpoints", "config.yaml"], ["last.ckpt"])


def test_a_new_folder_is_removed_if_no_training_started() -> None:
    RunWriter.create(Path(), "config").close()
    assert not Path("lightning_logs").exists()
    Path("lightning_logs").mkdir()
    Path("lightning_logs/mine").touch()
    writer = RunWriter.create(Path(), "config")
    (writer.path / "events").touch()
    writer.close()
    assert names(Path("lightning_logs")) == ["mine"]


def test_a_folder_stays_once_training_started() -> None:
    writer = RunWriter.create(Path(), "config")
    writer.start()
    writer.close()
    assert names(RUN) == ["config.yaml"]
    reopened = RunWriter(RUN, "longer", is_new=False)
    reopened.close()  # before its training started
    assert (RUN / "config.yaml").read_text() == "config"
    reopened = RunWriter(RUN, "longer", is_new=False)
    reopened.start()
    reopened.close()
    assert (RUN / "config.yaml").read_text() == "longer"


def test_results_are_written_and_read() -> None:
    writer = RunWriter.create(Path(), "{}")
    writer.start()
    sizes: dict[str, Any] = {"num_train": 4, "num_val": 3, "num_test": 2, "num_classes": 2, "num_parameters": 1}
    results = Results(source="images", title="images", network="Net", metrics={"Accuracy/test": 0.5}, **sizes)
    writer.save_results(results)
    writer.close()
    assert names(RUN) == ["config.yaml", "results.json"]
    Path(writer.checkpoints).mkdir()
    (writer.checkpoints / "last.ckpt").touch()
    assert Run(RUN).results == results


def test_a_disk_that_is_too_small_is_found_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.create(Path(), "config")
    writer.check_space(3_000_000)

    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError) as error:
            writer.check_space(5)
    assert "a checkpoint of 5 bytes cannot be written to lightning_logs/version_0 (No space left on device)" in str(
        error.value
    )
    assert names(RUN) == [".lock"]
    writer.close()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    Path("lightning_logs").write_text("not a folder")
    with pytest.raises(UserError, match=r"`default_root_dir` is \.: no run can be kept there \(File exists\)"):
        RunWriter.create(Path(), "config")
    Path("deep").touch()
    with pytest.raises(UserError, match=r"`default_root_dir` is deep/er: no run can be kept there \(Not a directory\)"):
        RunWriter.create(Path("deep/er"), "config")
