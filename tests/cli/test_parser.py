"""What ``fit`` offers: its help, its defaults, its configuration."""

from pathlib import Path

import pytest
import yaml

from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.cli.words import option_names
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.recipes import RECIPES
from tests.helpers.runs import Refused


def test_print_config_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--print_config", "--model.lr", "0.05"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["lr"] == 0.05
    assert config["trainer"]["max_epochs"] == 20
    assert config["data"]["batch_size"] == 64


def test_the_defaults_are_the_tutorials(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model = config["model"]
    assert model["net"]["class_path"].endswith("TutorialCNN")
    assert (model["lr"], model["momentum"], model["weight_decay"], model["schedule"]) == (0.01, 0, 0, "constant")
    assert model["mean"] == [0, 0, 0]
    assert model["std"] == [1, 1, 1]
    assert (config["data"]["source"], config["data"]["root"], config["data"]["val_size"]) == ("cifar10", "data", 5000)


def test_a_recipe_is_overridden_by_a_file_and_that_by_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--recipe", "tuned", "--print_config"]) == 0
    tuned = yaml.safe_load(capsys.readouterr().out)
    Path("own.yaml").write_text("recipe: tuned\nmodel: {momentum: 0.5}\ndata: {batch_size: 7}\n")
    assert main(["fit", "--config", "own.yaml", "--data.batch_size", "9", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"]["momentum"], config["data"]["batch_size"]) == (0.5, 9)
    assert config["model"]["schedule"] == tuned["model"]["schedule"]
    assert config["model"]["net"] == tuned["model"]["net"]
    assert tuned["model"]["momentum"] != 0.5
    # An option names another recipe than the file.
    assert main(["fit", "--config", "own.yaml", "--recipe", "fast", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["recipe"] == "fast"
    assert config["model"]["net"]["class_path"].endswith("FastCNN")
    assert config["model"]["momentum"] == 0.5


def test_help_lists_the_recipes_and_the_documented_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: cifar-lit fit [options] Train, keep the checkpoint")
    for recipe, path in RECIPES.items():
        assert f"{recipe} ({path.read_text().splitlines()[0].removeprefix('# ')})" in text
    assert "Peak learning rate of SGD, above 0." in text
    assert "TutorialCNN" in text
    assert "ConvReLU" not in text  # only networks of ours are offered, not every module of torch
    assert "--checkpoint.every_n_steps" in text
    assert "--checkpoint.run" not in text


def test_options_are_named_as_they_were_typed() -> None:
    parser = CommandParser("try", "RUN", "Try.", "cifar-lit try x")
    parser.add_argument("--data.batch_size")
    parser.add_argument("--report")
    assert parser.names == {**option_names(["--help", "--data.batch_size", "--report"]), "trust": "--trust_run"}
    with pytest.raises(UserError) as error, naming_options(parser.names):
        raise UserError("`batch_size` is 0, and `root` and batch_size are not options; see `report`")
    assert str(error.value) == "--data.batch_size is 0, and `root` and batch_size are not options; see --report"


def test_a_misspelt_option_is_suggested_and_none_may_be_abbreviated() -> None:
    parser = CommandParser("try", "RUN", "Try.", "cifar-lit try x")
    parser.add_argument("--batch_size")
    for args, expected in (
        (["--batch_siz", "3"], "unrecognized arguments: --batch_siz 3; did you mean --batch_size?"),
        (["--batch", "3"], "unrecognized arguments: --batch 3; did you mean --batch_size?"),
        (["--batch_size"], "argument --batch_size: expected one argument"),
    ):
        with pytest.raises(UserError) as error:
            parser.parse_args(args)
        assert expected in str(error.value)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([""], "run is '': must have a value"),
        (["x", "--batch_size="], "--batch_size is '': must have a value"),
        (["x\0"], "run is 'x\\x00': must have a value"),
        (
            ["x", "--config", "a"],
            "unrecognized arguments: --config a; a RUN has its own settings, and only some can be",
        ),
        (["x", "--trainer.fast_dev_run=1"], "--trainer.fast_dev_run=1; a RUN has its own settings"),
        (["x", "--model.batch_size", "3"], "only some can be overridden; did you mean --batch_size?"),
    ],
)
def test_an_empty_value_and_the_options_of_fit_are_refused_by_name(args: list[str], expected: str) -> None:
    parser = CommandParser("try", "RUN", "Try.", "cifar-lit try x")
    parser.add_argument("run")
    parser.add_argument("--batch_size")
    with pytest.raises(UserError) as error:
        parser.parse_args(args)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--model.lr"),
        ("--epochs", "--trainer.max_epochs"),
        ("--batch_size", "--data.batch_size"),
        ("--seed", "--seed_everything"),
        ("--source", "--data.source"),
        ("--model.learning_rate", "--model.lr"),
        ("--trainer.epochs", "--trainer.max_epochs"),
        ("--trainer.max_epoch", "--trainer.max_epochs"),
    ],
)
def test_options_that_people_try_first_name_the_right_one(option: str, meant: str, refused: Refused) -> None:
    code, line = refused(["fit", option, "1"])
    assert (code, line) == (
        2,
        f"error: unrecognized arguments: {option} 1; did you mean {meant}? (--help lists all options)",
    )
