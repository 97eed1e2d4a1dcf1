"""``auto``: what it stood for is written down, and is what a run goes on with."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.cli.auto import TOLD, settle
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, kernels
from tests.helpers.options import Workbench
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results
from tests.helpers.trainers import quiet_trainer

AUTO = ["--model.kernels", "auto", "--trainer.precision", "auto"]
NET = ["--model.net", "FastCNN", "--model.net.widths", "[64,64]", "--data.batch_size", "24", "--no_report"]
CHOSEN = {"64x64@8": "winograd", "64x64@4": "direct"}
LAST = RUN / "checkpoints/last.ckpt"


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Replace the time of Winograd's method in float32, as a share of torch's, by these of images of a size."""
    shares = {8: 0.5, 4: 2.0}
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(kernels, "time_winograd", lambda _dtype, *shape: shares[shape[-1]])
    return shares


def has_bfloat16_of(device: bool, *, including_emulation: bool) -> bool:
    return device or including_emulation


def fit(tiny_args: list[str], *options: str, epochs: int = 1) -> dict[str, Any]:
    args = [*tiny_args, *NET, "--data.image_sizes", "[16]", "--trainer.max_epochs", str(epochs), *options]
    assert main(["fit", *args]) == 0
    return read_config()


def read_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((RUN / "config.yaml").read_text())
    return config


def last() -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(LAST, weights_only=True)
    return checkpoint


def test_what_was_chosen_stands_in_the_files_of_the_run_and_changes_no_other_bits(
    tiny_args: list[str],
    share: dict[int, float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = fit(tiny_args, *AUTO)
    assert "precision 32-true, kernels direct (winograd for 64x64@8)" in capsys.readouterr().out
    results, hparams = read_results(), yaml.safe_load((RUN / "hparams.yaml").read_text())
    assert config["model"]["kernels"] == results["kernels"] == hparams["kernels"] == CHOSEN
    assert last()["hyper_parameters"]["kernels"] == CHOSEN
    assert config["trainer"]["precision"] == results["precision"] == last()["precision"] == "32-true"
    measured = last()["state_dict"]
    shutil.copy(RUN / "config.yaml", "own.yaml")
    workbench = Workbench()
    workbench.build("--config", "own.yaml")
    assert workbench.cli.model.hparams["kernels"] == CHOSEN
    # Disturbed by other work, it has what is usual.
    monkeypatch.setattr(kernels, "time_winograd", lambda *_args: None)
    (Path.home() / ".cache/cifar_lit/measured.json").unlink()
    workbench.parse("--model.net", "FastCNN", *AUTO, "--trainer.accelerator", "cpu")
    workbench.cli.instantiate_classes()
    settle(workbench.cli, None)
    assert "kernels winograd (not measured: other work keeps the processor busy)" in capsys.readouterr().out
    # Given, it computes the same without measuring.
    share.clear()
    shutil.rmtree("lightning_logs")
    config = fit(tiny_args, "--model.kernels", str(CHOSEN))
    assert (config["model"]["kernels"], config["trainer"]["precision"]) == (CHOSEN, None)
    weights = last()["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in measured.items())


def test_a_run_goes_on_with_what_it_began_with(tiny_args: list[str], share: dict[int, float], refused: Refused) -> None:
    config = fit(tiny_args, *AUTO)
    (Path.home() / ".cache/cifar_lit/measured.json").unlink()
    share.update({8: 2.0, 4: 0.5})
    assert main(["fit", "--ckpt_path", "last", *AUTO, "--trainer.max_epochs", "2"]) == 0
    assert read_config()["model"]["kernels"] == CHOSEN
    assert last()["hyper_parameters"]["kernels"] == CHOSEN
    assert read_results()["kernels"] == CHOSEN
    code, line = refused(["fit", "--ckpt_path", "last", "--model.kernels", "direct", "--trainer.max_epochs", "3"])
    assert code == 2
    assert f"kernels {CHOSEN} (given: direct)" in line
    assert config["trainer"]["precision"] == "32-true"
    # One of an older version, away from its run.
    checkpoint = last()
    del checkpoint["hyper_parameters"]["kernels"], checkpoint["precision"]
    torch.save(checkpoint, "old.ckpt")
    shutil.rmtree("lightning_logs")
    config = fit(tiny_args, *AUTO, "--ckpt_path", "old.ckpt", epochs=3)
    assert (config["model"]["kernels"], config["trainer"]["precision"]) == ("winograd", "32-true")


def test_bfloat16_where_it_pays(tiny_args: list[str], share: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("networks.kernels", "machine"):
        monkeypatch.setattr(f"cifar_lit.{module}.has_fast_bfloat16", lambda: True)
    compared: list[object] = []

    def time_bfloat16(_net: object, _num_images: int, _size: int, of_both: object) -> float:
        compared.append(of_both)
        return 0.5

    monkeypatch.setattr(kernels, "time_bfloat16", time_bfloat16)
    config = fit(tiny_args, *AUTO)
    assert compared == [(CHOSEN, CHOSEN)]
    assert (config["trainer"]["precision"], config["model"]["kernels"]) == ("bf16-mixed", CHOSEN)
    assert (read_results()["precision"], last()["precision"]) == ("bf16-mixed", "bf16-mixed")
    monkeypatch.setattr(kernels, "time_bfloat16", lambda *_args: 2.0)
    LAST.rename("own.ckpt")
    shutil.rmtree("lightning_logs")
    share.update({8: 2.0, 4: 0.5})
    config = fit(tiny_args, *AUTO, "--ckpt_path", "own.ckpt", epochs=2)
    assert (config["trainer"]["precision"], config["model"]["kernels"]) == ("bf16-mixed", CHOSEN)


def test_a_precision_that_was_not_measured_says_so_and_kernels_are_named_where_there_are_two(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(kernels, "time_bfloat16", lambda *_args: None)
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.precision", "auto"]) == 0
    note = "(not measured: other work keeps the processor busy)\n"
    assert f"precision 32-true {note}" in capsys.readouterr().out
    monkeypatch.setattr(kernels, "time_winograd", lambda *_args: None)
    monkeypatch.setattr(kernels, "time_bfloat16", lambda *_args: pytest.fail("it times kernels that were not measured"))
    workbench = Workbench()
    for precision, expected in (("bf16-mixed", "bf16-mixed, kernels direct"), ("auto", "32-true, kernels winograd")):
        workbench.parse("--model.net", "FastCNN", *AUTO, "--trainer.precision", precision)
        workbench.cli.instantiate_classes()
        settle(workbench.cli, None)
        assert f"precision {expected} {note}" in capsys.readouterr().out


def test_what_is_measured_compiled_is_not_taken_for_others(
    share: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda: True)
    workbench = Workbench()
    measured: list[object] = []

    def time_bfloat16(_net: object, _num_images: int, _size: int, of_both: object) -> float:
        measured.append(of_both)
        return 0.5 if len(measured) == 1 else 2.0

    monkeypatch.setattr(kernels, "time_bfloat16", time_bfloat16)
    for compiled, expected in (("true", "bf16-mixed"), ("false", "32-true"), ("true", "bf16-mixed")):
        workbench.parse("--model.net", "FastCNN", *AUTO[2:], "--model.compile", compiled)
        workbench.cli.instantiate_classes()
        settle(workbench.cli, None)
        assert workbench.cli.trainer_options["precision"] == expected
        assert workbench.cli.config["model"]["kernels"] == "winograd"
    assert measured == [("direct", "direct"), ("winograd", "winograd")]


def test_a_run_that_began_with_kernels_of_another_network_is_read_and_resumed(
    tiny_args: list[str], share: dict[int, float], refused: Refused
) -> None:
    fit(tiny_args, "--model.kernels", str(CHOSEN))
    other = {"64x999@8": "winograd"}
    checkpoint = last()
    checkpoint["hyper_parameters"]["kernels"] = other
    torch.save(checkpoint, LAST)
    config = read_config()
    config["model"]["kernels"] = other
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", str(LAST)]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    workbench = Workbench()
    workbench.build("--config", str(RUN / "config.yaml"))
    code, line = refused(["fit", *tiny_args, *NET, "--model.kernels", str(other)])
    assert (code, "--model.kernels has 64x999@8, and the network no such convolution" in line) == (2, True)


def test_there_is_a_choice_on_a_cpu_in_types_that_it_computes_in(
    share: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = Workbench()
    share.clear()  # nothing may be timed
    for options, expected in (
        (["--trainer.precision", "bf16-mixed"], "direct"),
        (["--trainer.precision", "64-true"], "direct"),
        (["--model.compile", "true"], "direct"),
        (["--model.kernels", "winograd"], "winograd"),
        (["--model.net", "TutorialCNN"], {}),
    ):
        workbench.parse("--model.net", "FastCNN", "--model.kernels", "auto", "--trainer.accelerator", "cpu", *options)
        workbench.cli.instantiate_classes()
        settle(workbench.cli, None)
        assert workbench.cli.config["model"]["kernels"] == expected, options
    workbench.parse("--model.net", "FastCNN", *AUTO)
    workbench.cli.instantiate_classes()
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # it waits for the choice of the first process
    monkeypatch.setenv(TOLD, "64-true")
    settle(workbench.cli, None)
    assert workbench.cli.model.hparams["kernels"] == "auto"
    assert workbench.cli.trainer_options["precision"] == "64-true"
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bfloat16, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", functools.partial(has_bfloat16_of, has_bfloat16))
        workbench.parse("--model.net", "FastCNN", *AUTO)
        workbench.cli.instantiate_classes()
        settle(workbench.cli, None)
        assert workbench.cli.config["model"]["kernels"] == "direct"
        assert workbench.cli.trainer_options["precision"] == precision


def test_in_python_the_trainer_begins_with_it(share: dict[int, float]) -> None:
    data = CIFAR10DataModule(source="synthetic", val_size=0, batch_size=20, image_sizes=[16])
    data.train = Synthetic(num_train=20, num_test=20, seed=7).load("train")

    def model() -> ImageClassifier:
        return ImageClassifier(classes=data.classes, net=functools.partial(FastCNN, widths=[64, 64]), kernels="auto")

    first = model()
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(first, datamodule=data)
    assert first.hparams["kernels"] == CHOSEN
    assert first.net.get_submodule("stages.stage1.convs.0").kernels == CHOSEN
    trainer.save_checkpoint("own.ckpt")
    share.update({8: 2.0, 4: 0.5})
    (Path.home() / ".cache/cifar_lit/measured.json").unlink()
    second = model()
    quiet_trainer(max_epochs=2, limit_val_batches=0).fit(second, datamodule=data, ckpt_path="own.ckpt")
    assert second.hparams["kernels"] == CHOSEN
