"""What ``fit`` offers: its help, its defaults, its configuration."""

import re
from pathlib import Path

import pytest
import yaml

from cifar_lit.cli.help import OTHERS, USED, format_help
from cifar_lit.cli.options import WITHHELD
from cifar_lit.cli.parser import GROUPS, CommandParser, naming_options
from cifar_lit.cli.start import with_config
from cifar_lit.cli.words import option_names
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.recipes import RECIPES
from tests.helpers.options import Workbench


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
    assert (config["data"]["source"], config["data"]["root"], config["data"]["val_size"]) == ("cifar10", "data", None)


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


def test_help_all_explains_the_recipes_and_all_options_in_english(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["fit", "--help_all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    text = " ".join(" ".join(lines).split())
    assert text.startswith("usage: cifar-lit fit [options] Train, and test the checkpoint")
    assert "lightning.pytorch.callbacks.EarlyStopping" in text
    assert not re.search(r"cifar_lit\.(callbacks|module|loggers)|Union\[|Optional\[|Literal\[|:class:", text)
    assert "(type: a number or null, default: null)" in text
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


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


def test_help_has_the_options_that_people_use_with_their_defaults_and_then_the_names_of_all(
    workbench: Workbench,
) -> None:
    lines = format_help().splitlines()
    assert lines[0] == "usage: cifar-lit fit [options]"
    assert [line for line in lines if len(line) > 80] == []
    used = [option.partition(" ")[0] for option in USED]
    assert [line.split()[0] for line in lines[4 : 4 + len(used)]] == used
    assert 20 <= len(used) <= 23
    shown = [option for option in workbench.cli.parser._option_string_actions if option.startswith("--")]
    withheld = {f"--trainer.{name}" for name in WITHHELD} | {f"--{group}" for group in GROUPS}
    withheld |= {
        "--data.seed",
        "--model.classes",
        "--model.image_size",
        "--model.resize",
        "--print_shtab",
    }  # linked to others, and for shells
    expected = {option for option in shown if not option.endswith((".help", "+"))} - withheld - {"--help", "--report"}
    others = {f"{start}{name}" for start, names in OTHERS.items() for name in names.split()}
    assert {*used, *others} == expected
    config = workbench.cli.parser.parse_args(with_config([]))
    for option, (_, default) in USED.items():
        if default is not None:
            value = config[option.split()[0].removeprefix("--")]
            known = value.class_path.rpartition(".")[2] if "net" in option else value
            assert known == default or (known is None and option.startswith(("--trainer.precision",))), option


MEANT = {
    "--model.lr": "--lr --learning_rate --learning-rate --model.learning_rate --data.lr --modle.lr --model.lrr lr=0.1",
    "--trainer.max_epochs": "--epochs --epoch --num-epochs --trainer.epochs --trainer.max_epoch --max-epochs",
    "--data.batch_size": "--batch_size --batch-size -b --bs --model.batch_size",
    "--seed_everything": "--seed --trainer.seed --manual-seed",
    "--data.source": "--source --data_set",
    "--data.dataset": "--dataset",
    "--data.root": "--root --data_dir --data-path",
    "--model.net": "--net --arch --network --backbone",
    "--model.weight_decay": "--wd --weight-decay",
    "--model.schedule": "--scheduler --lr-scheduler",
    "--trainer.default_root_dir": "--output --out-dir --logdir --save_dir",
    "--ckpt_path": "--resume --ckpt --checkpoint_path",
    "--trainer.accelerator": "--device",
    "--trainer.gradient_clip_val": "--clip --grad_clip",
    "--data.val_size": "--val-split",
    "--recipe tuned": "tuned",
    "--config my.yaml": "my.yaml",
    "--recipe": "--recipie --preset",
}


@pytest.mark.parametrize("meant", MEANT)
def test_options_that_people_try_first_name_the_right_one(meant: str, workbench: Workbench) -> None:
    for option in MEANT[meant].split():
        expected = f"unrecognized arguments: {option} 1; did you mean {meant}? (--help lists all options)"
        assert workbench.refusal([option, "1"]) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--workers", "--workers is not an option of fit: the images are in memory"),
        ("-j", "-j is not an option of fit: the images are in memory"),
        ("--gpu", "--gpu is not an option of fit: give --trainer.accelerator gpu, mps or cpu"),
        ("--optim", "--optim is not an option of fit: it is SGD, with Muon by --model.muon_lr"),
        ("--patience", "--patience is not an option of fit: give --trainer.callbacks+ EarlyStopping"),
        ("--pretrained", "--pretrained is not an option of fit: give --model.weights and a run"),
        ("--version", "--version is not an option of fit: cifar-lit --version shows it"),
        ("--dropout", "--dropout is not an option of fit: it belongs to a network"),
        ("--model", "--model is 1: must be a file with its settings; did you mean --model.net?"),
        ("--data", "--data is 1: must be a file with its settings; did you mean --data.source?"),
        ("--checkpoint", "--checkpoint is 1: must be a file with its settings; did you mean --ckpt_path?"),
        ("--zzz", "unrecognized arguments: --zzz 1 (--help lists all options)"),
    ],
)
def test_other_options_get_an_answer(options: str, expected: str, workbench: Workbench) -> None:
    assert workbench.refusal([options, "1"]).startswith(expected)


WRONG = [
    ("trainer.max_epochs", "ten", "a whole number or null"),
    ("trainer.max_epochs", "true", "a whole number or null"),
    ("trainer.limit_train_batches", "[1]", "a number or null"),
    ("trainer.deterministic", "maybe", "one of warn, true, false, null"),
    ("trainer.callbacks", "[1]", "the name of a class, or a mapping with its class_path and init_args"),
    ("model.lr", "high", "a number"),
    ("model.nesterov", "maybe", "true or false"),
    ("model.schedule", "step", "one of constant, linear, cosine"),
    ("model.mean", "3", "a list"),
    ("model.mean", "[1, 2]", "a list of 3 values"),
    ("data.batch_size", "3.5", "a whole number"),
    ("data.image_sizes", "3", "a list"),
    ("checkpoint.every_n_minutes", "x", "a number"),
    ("seed_everything", "x", "a whole number"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_type_is_said_in_english_on_the_command_line_and_in_a_file(
    name: str, value: str, expected: str, workbench: Workbench
) -> None:
    refusal = f"--{name} is {value}: must be {expected} (--help lists all options)"
    assert workbench.refusal([f"--{name}={value}"]) == refusal
    group, _, key = name.rpartition(".")
    Path("wrong.yaml").write_text(f"{group}: {{{key}: {value}}}" if group else f"{key}: {value}")
    assert workbench.refusal(["--config", "wrong.yaml"]).lower() == refusal.lower()  # true becomes True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: 3", "--trainer is 3: must be a mapping of its settings"),
        ("model: []", "--model is empty: must be a mapping of its settings"),
        ("model: ResNet", "--model is ResNet: must be a file with its settings; did you mean --model.net?"),
        ("lr: 0.1", "there is no --lr, in a file either; did you mean --model.lr?"),
        ("trainer: {logger: wandb}", "--trainer.logger is wandb: there is no such class; did you mean WandbLogger?"),
    ],
)
def test_a_file_with_other_content_is_one_line(text: str, expected: str, workbench: Workbench) -> None:
    Path("odd.yaml").write_text(text)
    assert workbench.refusal(["--config", "odd.yaml"]).startswith(expected)


def test_the_options_of_a_command_are_meant_too() -> None:
    parser = CommandParser("try", "RUN", "Try.", "cifar-lit try x")
    parser.add_argument("--device")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--to", choices=["onnx", "pt2"])
    for args, expected in (
        (["--gpu"], "unrecognized arguments: --gpu; did you mean --device?"),
        (["-k", "3"], "unrecognized arguments: -k 3; did you mean --top_k?"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3; a RUN has its own settings"),
        (["--workers", "3"], "unrecognized arguments: --workers 3; a RUN has its own settings"),
        (["--output", "x"], "unrecognized arguments: --output x (--help lists all options)"),
        (["--top_k", "few"], "--top_k is 'few': must be a whole number"),
        (["--to", "tflite"], "--to is tflite: must be one of onnx, pt2"),
    ):
        with pytest.raises(UserError) as error:
            parser.parse_args(args)
        assert str(error.value).startswith(expected)
