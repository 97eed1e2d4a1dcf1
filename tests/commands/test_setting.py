"""What the options of a setting come to: of files and the command line, in several spellings, as in ``fit``."""

from pathlib import Path
from typing import Any

import pytest

from cifar_lit.commands.setting import Setting
from cifar_lit.commands.trial import check


def test_options_have_the_values_that_they_set() -> None:
    setting = Setting("fast", ["--recipe", "fast", "--model.lr=3", "--no_report", "--data.flip", "none"])
    assert setting.values["model.net.class_path"] == "FastCNN"
    assert (setting.values["model.lr"], setting.values["data.flip"]) == (3, "none")
    assert setting.values["no_report"] is True
    assert setting.values["model.muon_lr"] == 0.24
    assert setting.values == Setting("other", ["--recipe=fast", *setting.args[2:]]).values


SWITCH = ["--recipe", "fast", "--model.net.widths=[8,8,8]"]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["--model.net=TutorialCNN"], {}),
        (["--model.net", "cifar_lit.networks.tutorial.TutorialCNN"], {}),
        (["--model.net.class_path=TutorialCNN"], {}),
        (["--model.net={class_path: TutorialCNN}"], {}),
        (["--model.net", "net.yaml"], {"bias_epochs": 3, "widths": [8, 8, 8], "num_convs": 2}),
        (["--config", "whole.yaml"], {}),
        (["--model.net=StrongCNN"], {"bias_epochs": 3, "widths": [8, 8, 8]}),
        (["--model.net=TutorialCNN", "--model.net=FastCNN"], {}),
        (
            ["--model.net=StrongCNN", "--model.net.init_args={widths: [9, 9, 9]}"],
            {"bias_epochs": 3, "widths": [9, 9, 9]},
        ),
        (["--model.net=TutorialCNN", "--model.net.bias_epochs=5"], {"bias_epochs": 5}),  # which fit refuses
        (["--model.net=my_net.TutorialCNN"], {"bias_epochs": 3, "widths": [8, 8, 8]}),  # not imported here
    ],
)
def test_settings_have_the_options_of_the_last_network(args: list[str], options: dict[str, Any]) -> None:
    Path("net.yaml").write_text("{init_args: {num_convs: 2}, class_path: StrongCNN}")
    Path("whole.yaml").write_text("model: {net: {class_path: TutorialCNN}}")
    values, own = Setting("", [*SWITCH, *args]).values, "model.net.init_args."
    assert {name.removeprefix(own): value for name, value in values.items() if name.startswith(own)} == options


@pytest.mark.parametrize(
    "args",
    [
        ["--model.net=StrongCNN"],
        ["--model.net={class_path: ResNet18}"],
        ["--model.net", "net.yaml"],
        ["--config", "whole.yaml", "--model={lr: 7}"],
        ["--recipe", "strong"],
        ["--model.lr=3", "--recipe", "strong", "--recipe", "fast10"],  # the last recipe comes first
        ["--config", "lr.yaml", "--recipe", "fast10", "--model.net.init_args={widths: [8, 8]}"],
    ],
)
def test_what_is_noted_is_what_fit_takes(args: list[str]) -> None:
    Path("net.yaml").write_text("{init_args: {num_convs: 2}, class_path: StrongCNN}")
    Path("whole.yaml").write_text("model: {net: {class_path: StrongCNN}}")
    Path("lr.yaml").write_text("model: {lr: 0.5}")
    args = [*SWITCH, *args, "--data.source=synthetic", "--trainer.accelerator=cpu"]
    values, hparams = Setting("", args).values, check(args).model.hparams
    own, taken = "model.net.init_args.", hparams["net"]["init_args"]
    noted = {name.removeprefix(own): value for name, value in values.items() if name.startswith(own)}
    assert noted == {name: taken[name] for name in noted}
    assert {name for name in ("widths", "bias_epochs") if taken.get(name) is not None} <= noted.keys() | {"widths"}
    assert values["model.net.class_path"].rpartition(".")[2] == hparams["net"]["class_path"].rpartition(".")[2]
    assert values["model.lr"] == hparams["lr"]


def test_a_long_mapping_is_no_name_of_a_file() -> None:
    text = "{class_path: StrongCNN, init_args: {num_convs: 2" + " " * 300 + "}}"
    assert Setting("", [f"--model.net={text}"]).values["model.net.init_args.num_convs"] == 2


def test_a_later_spelling_of_an_option_wins() -> None:
    Path("own.yaml").write_text("model: {net: {class_path: StrongCNN}}")
    args = ["--recipe", "fast", "--config", "own.yaml", "--model.net", "FastCNN"]
    assert Setting("", args).values["model.net.class_path"] == "FastCNN"
    spellings = [("init_args.", 3), ("", 5), ("init_args.", 1)]
    args = [f"--model.net.{part}bias_epochs={number}" for part, number in spellings]
    assert Setting("", args).values == {"model.net.init_args.bias_epochs": 1}


def test_all_spellings_of_a_file_and_each_value_of_a_list_are_noted() -> None:
    Path("own.yaml").write_text("model: {lr: 0.5}")
    for args in (["-c", "own.yaml"], ["-c=own.yaml"], ["-cown.yaml"], ["--config", "own.yaml"]):
        assert Setting("", [*args, "--data.flip=none"]).values == {"model.lr": 0.5, "data.flip": "none"}
    two = Setting("", ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks+=DeviceStatsMonitor"])
    assert two.values == {"trainer.callbacks+": ["EarlyStopping", "DeviceStatsMonitor"]}
