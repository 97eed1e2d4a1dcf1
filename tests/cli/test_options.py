"""Options that Lightning checks late, or not at all; and absurd values of all options of the model and the data."""

import contextlib
import shlex
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)

from cifar_lit.cli.options import METRICS, WITHHELD, check_callbacks
from cifar_lit.cli.words import UNKNOWN
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.machine import set_up
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from tests.helpers.options import Workbench, torch_flags_kept
from tests.helpers.runs import FEW_EPOCHS, Refused
from tests.helpers.trainers import quiet_trainer

HUGE = str(10**30)
ABSURD = ("-1", HUGE, "", "[1, 2]", "{a: 1}", ".nan", ".inf", "x y", "\0", "null")
GROUPS = ("--model.", "--data.", "--checkpoint.", "--seed_everything", "--report")


class Own(EarlyStopping):
    """A callback of a user's, which may log what it likes."""


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


def test_help_offers_only_what_acts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert not [name for name in WITHHELD if f"--trainer.{name}" in text]
    assert "--trainer.max_epochs" in text


@pytest.mark.parametrize("option", sorted(UNKNOWN))
def test_options_of_lightning_that_fit_does_not_have_name_the_way_out(option: str, workbench: Workbench) -> None:
    expected = f"{option} is not an option of fit: {UNKNOWN[option]}"
    assert workbench.refusal([f"{option}=false"]) == expected


def test_what_can_be_monitored_is_what_the_module_logs(capsys: pytest.CaptureFixture[str]) -> None:
    datamodule = CIFAR10DataModule(source="synthetic", val_size=10)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0)
    trainer.fit(ImageClassifier(classes=datamodule.classes), datamodule=datamodule)
    assert {*METRICS["train"], *METRICS["val"]} == trainer.callback_metrics.keys()


@pytest.mark.parametrize(
    ("callbacks", "has_val", "expected"),
    [
        (
            [EarlyStopping("val_loss")],
            True,
            "EarlyStopping monitors val_loss, which nobody logs; did you mean Loss/val?",
        ),
        ([EarlyStopping("acc/val")], True, "did you mean Accuracy/val?; there are Loss/train, Accuracy/train, lr"),
        ([EarlyStopping("val_macro_acc")], True, "did you mean MacroAccuracy/val?"),
        ([EarlyStopping("val/MacroAcc")], True, "did you mean MacroAccuracy/val?"),
        ([ModelCheckpoint(monitor="Loss/vol")], True, "ModelCheckpoint monitors Loss/vol, which nobody logs"),
        ([EarlyStopping("Loss/val")], False, "which nobody logs; there are Loss/train, Accuracy/train, lr"),
        ([EarlyStopping("lr-SGD")], True, "EarlyStopping monitors lr-SGD, which nobody logs"),
        ([EMAWeightAveraging(), EMAWeightAveraging()], True, "`callbacks` has EMAWeightAveraging twice"),
        (
            [EMAWeightAveraging(update_starting_at_step=9)],
            True,
            "EMAWeightAveraging has update_starting_at_step 9, and",
        ),
        ([EMAWeightAveraging(update_starting_at_step=0, update_starting_at_epoch=2)], True, ""),
        ([EMAWeightAveraging(update_every_n_steps=0)], True, "update_every_n_steps 0: must be at least 1"),
        ([EMAWeightAveraging(update_every_n_steps=4)], True, ""),
        ([LearningRateFinder()], True, "says, and on 180 pictures its suggestions varied a hundredfold"),
        ([BatchSizeFinder()], True, "BatchSizeFinder would train with another `batch_size` than config.yaml says"),
        ([StochasticWeightAveraging(0.1), Own("mine")], True, "StochasticWeightAveraging trains a further epoch"),
        ([EarlyStopping("Loss/val"), LearningRateMonitor(), ModelCheckpoint()], True, ""),
        ([EarlyStopping("lr-SGD"), LearningRateMonitor()], True, ""),
        ([EarlyStopping("lr")], False, ""),
        ([EarlyStopping("own"), Own("mine")], True, ""),
        ([EarlyStopping("Loss/val"), EarlyStopping("Accuracy/val", mode="max")], True, ""),
    ],
    ids=lambda value: str([type(part).__name__ for part in value]) if isinstance(value, list) else "",
)
def test_a_callback_that_does_not_fit_is_refused_before_the_first_step(
    callbacks: list[Any], has_val: bool, expected: str
) -> None:
    if not expected:
        check_callbacks(callbacks, has_val=has_val)
        return
    with pytest.raises(UserError) as error:
        check_callbacks(callbacks, has_val=has_val)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("ModelCheckpoint --trainer.callbacks.save_top_k -5", "ModelCheckpoint: Invalid value for save_top_k=-5"),
        ("EMAWeightAveraging --trainer.callbacks.decay 5", "EMAWeightAveraging: Invalid decay value 5.0"),
        (
            "EarlyStopping --trainer.callbacks.mode up --trainer.callbacks.monitor lr",
            "EarlyStopping: mode can be min, max, got up",
        ),
        ("GradientAccumulationScheduler --trainer.callbacks.scheduling '{-1: 2}'", "Epoch should be an int"),
        ("ModelCheckpoint --trainer.callbacks.dirpath /dev/null/x", "is /dev/null/x: must be a folder, and /dev/null"),
        (
            "LearningRateMonitor --trainer.callbacks.logging_interval never",
            "logging_interval is never: must be one of step, epoch, null",
        ),
        ("EarlyStopping --trainer.callbacks.monitors x", "there is no --trainer.callbacks.monitors; did you mean --tr"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_a_bad_value_of_a_callback_is_one_line(options: str, expected: str, workbench: Workbench) -> None:
    line = workbench.refusal(["--trainer.callbacks+", *shlex.split(options)])
    assert expected in line
    assert len(line) < 300


def test_a_callback_of_the_recipe_is_given_once(workbench: Workbench) -> None:
    tuned = ["--recipe", "tuned"]
    line = workbench.refusal([*tuned, "--trainer.callbacks+", "EMAWeightAveraging"])
    assert line.startswith("--trainer.callbacks has EMAWeightAveraging twice, perhaps once from the recipe")
    trainer: Any = workbench.build(*tuned, "--trainer.callbacks", "EMAWeightAveraging", "--trainer.callbacks.decay=0.5")
    assert sum(isinstance(callback, EMAWeightAveraging) for callback in trainer.callbacks) == 1
    trainer = workbench.build(*tuned, "--trainer.callbacks+", "LearningRateMonitor")
    kinds = {type(callback) for callback in trainer.callbacks}
    assert {EMAWeightAveraging, LearningRateMonitor} <= kinds


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--trainer.callbacks+ BackboneFinetuning", "BackboneFinetuning cannot be used so: 'ImageClassifier' object"),
        (
            "--trainer.logger CSVLogger --trainer.logger.save_dir csv --trainer.logger.flush_logs_every_n_steps 0",
            "CSVLogger cannot be used so",
        ),
    ],
    ids=["callback", "logger"],
)
def test_what_a_class_of_lightning_cannot_do_is_one_line(
    options: str, expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, *options.split()])
    assert (code, expected in line) == (2, True), line


def test_benchmark_decides_where_it_is_given() -> None:
    with torch_flags_kept():
        for benchmark, expected in ((None, True), (False, False)):
            torch.backends.cudnn.benchmark = False
            set_up(torch.device("cuda"), "32-true", benchmark=benchmark)
            assert torch.backends.cudnn.benchmark is expected


def options_of(workbench: Workbench) -> list[str]:
    return [option for option in workbench.cli.parser._option_string_actions if option.startswith(GROUPS)]


@pytest.mark.parametrize("values", [pytest.param(ABSURD, marks=pytest.mark.slow), (HUGE,)], ids=["all", "huge"])
def test_an_absurd_value_is_taken_or_refused_and_never_a_traceback(
    values: tuple[str, ...], workbench: Workbench
) -> None:
    for option in options_of(workbench):
        for value in values:
            line = workbench.refusal([f"{option}={value}"])  # any other error is raised
            assert len(line) < 400, line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--checkpoint.monitor Loss/val",
            "--checkpoint.monitor is Loss/val, and --trainer.enable_checkpointing is False",
        ),
        ("--checkpoint.every_n_steps 5", "--checkpoint.every_n_steps is 5, and"),
        ("--checkpoint.every_n_minutes 0.5", "--checkpoint.every_n_minutes is 0.5, and"),
        ("", ""),
    ],
)
def test_options_of_checkpoints_need_some(options: str, expected: str, workbench: Workbench, refused: Refused) -> None:
    for value in ("false", "true"):
        workbench.build(*options.split(), f"--trainer.enable_checkpointing={value}")
        is_refused = bool(expected) and value == "false"
        with pytest.raises(UserError) if is_refused else contextlib.nullcontext() as error:
            assert workbench.cli.saving
        if error:
            error.value.options = workbench.cli.names
            assert expected in str(error.value)
    if "monitor" in options:
        code, line = refused(
            ["fit", "--data.source", "synthetic", *options.split(), "--trainer.enable_checkpointing=false"]
        )
        assert (code, f"error: {expected}: leave out one of the two") == (2, line)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.net ResNet18 --model.net.width 12", "--model.net.width is 12: must be a multiple of 8"),
        ("--model.class_weights balance", "--model.class_weights is balance: must be one of balanced, null or a list"),
    ],
)
def test_an_error_names_the_option_and_what_it_takes(options: str, expected: str, workbench: Workbench) -> None:
    assert expected in workbench.refusal(options.split())
