"""Parameters that a network trains in some epochs alone: the bias of the first layer of FastCNN."""

import functools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, StrongCNN
from tests.helpers.options import Workbench
from tests.helpers.processes import at_step, script, state_of
from tests.helpers.runs import callback
from tests.helpers.trainers import quiet_trainer

FAST = ["--model.net", "FastCNN", "--model.net.widths", "[8,16]", "--data.batch_size", "12", "--no_report"]
TRAINING = ["--model.muon_lr", "0.1", "--model.momentum", "0.5", "--model.weight_decay", "0.01"]
BIAS = "whiten.bias"


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


class Seen(Callback):
    """Remembers at the end of each epoch the network, and whether the bias has a gradient."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.is_trained: list[bool] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module.net, FastCNN)
        self.states.append({name: part.clone() for name, part in pl_module.net.state_dict().items()})
        self.is_trained.append(pl_module.net.get_parameter(BIAS).requires_grad)


def model_of(bias_epochs: int | None) -> ImageClassifier:
    torch.manual_seed(2)
    net = functools.partial(FastCNN, widths=[8, 16], bias_epochs=bias_epochs)
    options: dict[str, Any] = {"lr": 0.1, "muon_lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    return ImageClassifier(classes=["a", "b", "c"], net=net, **options)


def test_the_bias_is_trained_in_the_first_epochs_alone(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=15, batch_size=9)
    seen, model = Seen(), model_of(2)
    quiet_trainer(max_epochs=4, callbacks=seen).fit(model, datamodule=data)
    first, second, *others = seen.states
    assert seen.is_trained == [True, True, False, False]
    assert not torch.equal(first[BIAS], second[BIAS])
    for state in others:  # neither momentum nor weight decay moves it
        assert torch.equal(state[BIAS], second[BIAS])
        assert not torch.equal(state["head.weight"], second["head.weight"])
    assert model.net.get_parameter(BIAS).requires_grad  # another training begins as this one did
    again = Seen()
    quiet_trainer(max_epochs=1, callbacks=again).fit(model, datamodule=data)
    assert not torch.equal(again.states[0][BIAS], second[BIAS])


@pytest.mark.parametrize("more", [[], callback("EMAWeightAveraging", decay=0.5)], ids=["plain", "averaged"])
@pytest.mark.parametrize("step", [3, 7])  # in an epoch with the bias, and in one without it
def test_a_run_resumes_exactly(step: int, more: list[str], tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, *FAST, *TRAINING, *more, "--model.net.bias_epochs", "1", "--trainer.max_epochs", "3"]
    assert main(options) == 0
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    with pytest.MonkeyPatch.context() as patch:
        at_step(step, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(options) == 143
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert state_of() == undisturbed


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_with_two_processes_it_rests_too(tiny_args: list[str]) -> None:
    two = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    options = [*tiny_args, *FAST, *TRAINING, *two, "--model.net.bias_epochs", "1", "--model.schedule", "constant"]
    for epochs in ("1", "2"):
        done = script([*options, "--trainer.max_epochs", epochs])
        assert done.code == 0, done.err
    files = sorted(Path("lightning_logs").glob("*/checkpoints/last.ckpt"))
    short, long = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert torch.equal(short[f"net.{BIAS}"], long[f"net.{BIAS}"])
    assert short[f"net.{BIAS}"].any()
    assert not torch.equal(short["net.head.weight"], long["net.head.weight"])


def test_a_configuration_that_did_not_know_it_has_none_of_its_recipe(workbench: Workbench) -> None:
    workbench.build("--recipe", "fast")
    config = yaml.safe_load(workbench.cli.dump())
    assert config["model"]["net"]["init_args"].pop("bias_epochs") == 3
    del config["model"]["kernels"]  # another one
    Path("config.yaml").write_text(yaml.safe_dump(config))
    workbench.build("--config", "config.yaml")
    assert workbench.cli.config["recipe"] == "fast"
    assert workbench.cli.model.hparams["net"]["init_args"]["bias_epochs"] is None
    assert "--recipe fast10 changes nothing" in workbench.refusal(["--config", "config.yaml", "--recipe", "fast10"])


@pytest.mark.parametrize(
    ("options", "network", "kept"),
    [
        (["--model.net", "TutorialCNN", "--data.image_sizes", "[]"], "TutorialCNN", {}),
        (["--model.net", "StrongCNN", "--model.net.widths", "[8]"], "StrongCNN", {"widths": [8], "bias_epochs": 3}),
        (["--model.net.widths", "[8,16]"], "FastCNN", {"widths": [8, 16], "bias_epochs": 3}),
    ],
)
def test_options_of_the_network_of_a_recipe_are_changed_one_by_one(
    options: list[str], network: str, kept: dict[str, Any], workbench: Workbench
) -> None:
    workbench.build("--recipe", "fast", *options)
    described = workbench.cli.model.hparams["net"]
    assert described["class_path"].endswith(network)
    assert kept.items() <= described["init_args"].items()
    assert ("bias_epochs" in described["init_args"]) == bool(kept)


def test_its_multiplications_are_left_out() -> None:
    images = {(0, 32): 100, (1, 16): 100, (2, 32): 100}
    counts = [count_multiplications(model_of(epochs), images, 30) for epochs in (None, 3, 2, 0)]
    assert counts[0] == counts[1]
    assert None not in counts
    # Without it: the gradient of the bias itself, and that of the input of the first 3x3 convolution.
    of_size = {size: size * size * 24 * 8 * 9 for size in (16, 32)}
    for count, saved in zip(counts[2:], (of_size[32], 2 * of_size[32] + of_size[16]), strict=True):
        assert counts[0] - count == 100 * saved  # type: ignore[operator]


@pytest.mark.parametrize("network", [FastCNN, StrongCNN])
@pytest.mark.parametrize("value", [-1, 1.5, "two", True])
def test_a_number_of_epochs_is_whole(network: type[FastCNN], value: object) -> None:
    with pytest.raises(UserError, match=r"`bias_epochs` is .*: must be a whole number of epochs from 0, or null"):
        network(bias_epochs=value)  # type: ignore[arg-type]
