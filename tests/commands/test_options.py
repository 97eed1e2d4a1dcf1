"""Every option of every command but ``fit``: it acts, or its value is refused in one line that names it."""

import argparse
import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cifar_lit import Run
from cifar_lit.main import COMMANDS, main
from tests.helpers.images import tiny_files, write_files
from tests.helpers.runs import FEW_EPOCHS, Refused

HUGE = str(10**30)
NUMBERS = ("", "nan", "-1", "few")
DATA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--data.root": (("{root}/tiny",), ("", "nowhere", HUGE, "\0")),
    "--data.cache_dir": (("cached",), ("", "\0", "{root}/tiny/train/dark/1.png")),
    "--data.mirror": ((), ("", "\0", "https://mirror.example/")),  # which images of one's own have not
}
TTA = {"--model.tta": (("none", "mirror"), ("", "nan", HUGE))}
TRAINER = {
    "--trainer.accelerator": (("cpu",), ("", "nan", "abacus")),
    "--trainer.devices": (("1",), ("", "nan", "-1", "0", HUGE)),
    "--trainer.strategy": (("auto",), ("", "nan", HUGE)),
    "--trainer.num_nodes": (("1",), ("", "nan", "-1", "0", HUGE)),
    "--trainer.precision": (("64-true",), ("", "nan", "-1")),
    "--trainer.limit_val_batches": (("1", "1.0", "0", HUGE), (*NUMBERS, "inf", "1.5")),
    "--trainer.enable_progress_bar": (("true", "FALSE"), ("", "nan", "2")),
}
ROWS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "test": {
        **DATA,
        **TTA,
        **TRAINER,
        "--trainer.limit_test_batches": (("1", "1.0", "0", HUGE), (*NUMBERS, "inf", "1.5")),
        "--report": ((), ("=false",)),
    },
    "validate": {**DATA, **TRAINER},
    "compare": {**DATA, **TTA},
    "predict": {
        "--format": (("table", "csv", "json", "jsonl"), ("", "xml")),
        "--top_k": (("1", HUGE), (*NUMBERS, "0", "1.5")),
        "--device": (("auto", "cpu"), ("", "nan", "-1", "meta", "cuda:99")),
    },
    "export": {
        "--to": (("safetensors",), ("", "tflite")),
        "--input": (("uint8",), ("", "float", "int64")),  # float: there is no input in safetensors
        "--output": (("out",), ("", "\0", "{root}/tiny", "{root}/tiny/train/dark/1.png")),
        "--benchmark": ((), ("=false",)),
    },
    "explain": {
        "--model.net": (("FastCNN",), ("", "Nothing", "os.system")),
        "--height": (("32",), (*NUMBERS, "0", HUGE)),
        "--width": (("32",), (*NUMBERS, "0", HUGE)),
        "--num_classes": (("2",), (*NUMBERS, "0", HUGE)),
    },
    "demo": {
        "--host": (("127.0.0.1",), ("", "\0", "nowhere.invalid", "a" * 70 + ".b")),
        "--port": (("7860",), (*NUMBERS, "0", HUGE)),
        "--max_upload_mb": (("1", "1e-9", HUGE), (*NUMBERS, "0", "inf")),
        "--data.root": (("{root}/tiny",), ("",)),  # where there are no test images, it says so, and goes on
    },
    "sweep": {
        "--recipe": (("tuned",), ("", "slow")),
        "--set": (("model.lr=log:0.01:0.3",), ("", "model.lr", "model.lr=log:1:0.1", "model.lr=1")),
        "--trials": (("1",), (*NUMBERS, "0")),
        "--study": (("mine",), ("", "\0")),
        "--storage": (("sqlite:///own.db",), ("", "own.db", "nothing://here", "sqlite:///nowhere/own.db")),
    },
    "download": {
        "--data.source": (("synthetic",), ("", "imagenet")),
        "--data.dataset": ((), ("", "MNIST")),  # which needs --data.source torchvision
        "--data.root": (("data",), ("", "\0", "{root}/tiny", "{root}/tiny/train/dark/1.png")),
        "--data.mirror": (("https://mirror.example/",), ("", "\0")),
    },
    "ladder": {
        "--steps": (("0-3,7", "3-0"), (*NUMBERS, "0-99", "1,,2")),
        "--seeds": (("2", "0,7", "3-5"), (*NUMBERS, "0", "1.5", HUGE)),
        "--epochs": (("4",), (*NUMBERS, "0", "1.5")),
        "--test": ((), ("=false",)),
        "--show": (("0",), (*NUMBERS, "99")),
        "--to": (("own",), ("", "\0", "{root}/tiny/train/dark/1.png")),
    },
    "paired": {
        "--first": (("--recipe tuned",), ("'", "tuned", "--seed_everything 1", "--data.root x")),
        "--second": (("--model.lr=0.1",), ("", "'", "tuned", "--trainer.devices 2")),
        "--seeds": (("2", "0,7", "3-5"), (*NUMBERS, "0", "1.5", HUGE)),
        "--to": (("own",), ("", "\0", "{root}/tiny/train/dark/1.png")),
    },
}
"""For each option of each command: values that act, and values that are refused. A new option asks for a row."""
OTHERS = {
    "compare": ["{root}/last.ckpt"],
    "predict": ["{root}/tiny/test/dark/101.png"],
    "export": ["--to", "safetensors"],
    "sweep": ["--set", "model.momentum=lin:0:0.9"],
    "paired": ["--second", "--model.momentum 0.9"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once, and return the folder with the images, the run and a copy of its last checkpoint."""
    root = tmp_path_factory.mktemp("options")
    data = ["--data.source", "images", "--data.root", str(write_files(root / "tiny", tiny_files()))]
    folders = ["--data.cache_dir", str(root / "cache"), "--trainer.default_root_dir", str(root)]
    assert main(["fit", *data, *folders, "--data.val_size", "0.2", *FEW_EPOCHS]) == 0
    (root / "lightning_logs/version_0").rename(root / "run")
    shutil.copy(root / "run/checkpoints/last.ckpt", root / "last.ckpt")
    return root


def command_line(command: str, option: str, value: str, root: Path) -> list[str]:
    run = [] if command in ("explain", "sweep", "ladder", "paired", "download") else ["{root}/run"]
    given = option + value if value == "=false" else f"{option}={value}"
    others = [] if option == OTHERS.get(command, [""])[0] else OTHERS.get(command, [])
    return [text.format(root=root) for text in (command, *run, *others, given)]


def test_every_option_has_a_row() -> None:
    assert ROWS.keys() | {"fit"} == COMMANDS.keys()
    for command, rows in ROWS.items():
        parser = importlib.import_module(COMMANDS[command][0])._parser()
        shown = [action.option_strings for action in parser._actions if action.help != argparse.SUPPRESS]
        assert {names[-1] for names in shown if names} - {"--help", "--trust_run", "--model.net.help"} == rows.keys(), (
            command
        )


@pytest.mark.parametrize(
    ("command", "given", "name", "default"),
    [
        ("paired", ["--second", "--model.lr 0.1"], "seeds", "10"),
        ("ladder", [], "seeds", "5"),
        ("ladder", [], "epochs", 8),
        ("predict", ["run", "cat.jpg"], "top_k", 3),
    ],
)
def test_a_number_that_is_not_given_is_this_one(command: str, given: list[str], name: str, default: object) -> None:
    parser = importlib.import_module(COMMANDS[command][0])._parser()
    assert vars(parser.parse_args(given))[name] == default


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(command, option, value) for command, rows in ROWS.items() for option in rows for value in rows[option][1]],
)
def test_absurd_values_are_refused_in_one_line(
    command: str, option: str, value: str, root: Path, refused: Refused
) -> None:
    code, line = refused(command_line(command, option, value, root))
    assert code in (1, 2)
    is_lightnings = line.startswith("error: --trainer: ") and option.rpartition(".")[2] in line
    assert option in line or is_lightnings, line


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command in ("test", "validate", "compare")
        for option in ROWS[command]
        for value in ROWS[command][option][0]
    ],
)
def test_an_option_of_fit_reaches_what_it_is_for(
    command: str, option: str, value: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: dict[str, Any] = {}

    def recording(method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            reached.update(options if len(args) < 2 else {}, **(args[0] if isinstance(args[0], dict) else {}))
            return method(*args, **options)

        return call

    test = importlib.import_module("cifar_lit.commands.test")
    monkeypatch.setattr(test, "make_trainer", recording(test.make_trainer))
    for name in ("model", "datamodule"):
        monkeypatch.setattr(Run, name, recording(getattr(Run, name)))
    monkeypatch.setattr("cifar_lit.commands.compare.format_comparison", lambda _, **options: reached.update(options))
    assert main(command_line(command, option, value, root)) == 0
    assert str(reached[option.rpartition(".")[2]]).lower() == value.format(root=root).lower()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command in ("predict", "export", "explain", "demo", "sweep", "ladder", "paired", "download")
        for option in ROWS[command]
        for value in ROWS[command][option][0]
    ],
)
def test_other_values_are_taken(
    command: str, option: str, value: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.commands.download.CIFAR10DataModule.prepare_data", lambda _: None)
    monkeypatch.setattr("cifar_lit.commands.demo.launch", lambda *_: "")
    monkeypatch.setattr("cifar_lit.commands.demo.make_page", lambda *_: SimpleNamespace(close=lambda **_: None))
    ends_at_once = SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr("cifar_lit.commands.demo.threading", ends_at_once)
    monkeypatch.setattr("cifar_lit.commands.export.write_all", lambda *_: None)
    monkeypatch.setattr("cifar_lit.commands.sweep.Sweep.run", lambda _: None)
    monkeypatch.setattr("cifar_lit.commands.experiment.Experiment.run", lambda _: None)
    monkeypatch.setattr("cifar_lit.commands.sweep.Sweep.summary", lambda _: [])
    assert main(command_line(command, option, value, root)) == 0
