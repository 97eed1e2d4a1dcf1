"""What the command line offers: its help, its defaults, what it would do."""

import pytest
import yaml

import cifar_lit
from cifar_lit.cli import main
from cifar_lit.parser import COMMANDS, SUBCOMMANDS
from cifar_lit.recipes import RECIPES


def test_print_config_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--print_config", "--model.lr", "0.05"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["lr"] == 0.05
    assert config["trainer"]["max_epochs"] == 20
    assert config["data"]["batch_size"] == 64


def test_the_defaults_are_the_tutorials(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    model = config["model"]
    assert model["net"]["class_path"].endswith("TutorialCNN")
    assert (model["lr"], model["momentum"], model["weight_decay"], model["schedule"]) == (0.01, 0, 0, "constant")
    assert model["mean"] == [0, 0, 0]
    assert model["std"] == [1, 1, 1]
    assert (config["data"]["source"], config["data"]["root"], config["data"]["val_size"]) == ("cifar10", "data", 5000)


def test_help_lists_the_recipes_and_the_documented_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: python scripts/fit.py [options] Train, keep the checkpoint")
    for recipe, path in RECIPES.items():
        assert f"{recipe} ({path.read_text().splitlines()[0].removeprefix('# ')})" in text
    assert "Peak learning rate of SGD, above 0." in text
    assert "TutorialCNN" in text
    assert "ConvReLU" not in text  # only networks of ours are offered, not every module of torch


def test_help_without_a_subcommand_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == text
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{cifar_lit.__version__}\n"
    assert all(f"\n  {name} " in text for name in (*SUBCOMMANDS, *COMMANDS))
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", [*SUBCOMMANDS, *COMMANDS, "test a b"])
def test_every_command_has_examples(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    text, marker, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert marker
    assert "  python scripts/" in examples or "  cifar-lit" in examples
    assert all(len(line) <= 80 for line in examples.splitlines())
    if name in COMMANDS or " " in name:  # the types that jsonargparse shows of the others' options are longer
        assert all(len(line) <= 80 for line in text.splitlines())


def test_what_is_no_command_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["prdict", "x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: prdict is no command: give one of fit, validate, test, predict, ")
