"""Every command and every line of Python in a README runs, shortened, as it is written there.

Bash reads each fenced block and expands it; the commands are functions that only note what they were called with. They
then run in this process, in a folder with runs and pictures. A block that cannot run is marked in its README with a
comment above it: ``<!-- not run: REASON -->``.
"""

import ast
import contextlib
import functools
import gc
import io
import re
import shutil
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import numpy as np
import pytest

from cifar_lit import ImageClassifier, Run
from cifar_lit.commands.trial import LEFT_OUT
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.main import COMMANDS, main
from tests.helpers.images import tiny_files, write_files
from tests.helpers.readmes import READMES, ROOT, Block, Command, blocks, expand

TINY = ["--data.source", "images", "--data.root", "tiny", "--data.batch_size", "8"]
LIMITS: dict[str, Any] = {
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "enable_progress_bar": False,
}
SHORT = [*(f"--trainer.{name}={value}" for name, value in LIMITS.items()), "--no_report"]
LARGE, NARROW = {"fast", "fast5", "fast10", "small"}, ["--model.net.widths", "[8,8]"]
"""Recipes whose network takes long on a CPU; tests/cli/test_fit.py and tests/callbacks/test_saver.py run those."""
MOST = {"--trainer.max_epochs": 3, "--trials": 2, "--seeds": 1, "--epochs": 1}
"""How much of a training is done, whatever a command says."""
STOPPED, NEXT = "version_2", "version_3"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def params(found: Iterator[Block]) -> list[Any]:
    skip = {block: [pytest.mark.skip(reason=block.reason)] if block.reason else [] for block in found}
    return [pytest.param(block, id=block.name, marks=marks) for block, marks in skip.items()]


def different(found: Iterator[Block]) -> Iterator[Block]:
    """Leave out what stands in two languages: the same lines, but for comments."""
    yield from {re.sub(r" *#.*", "", block.text): block for block in found}.values()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare what the commands name: runs, the last of which was stopped, pictures, an archive, a network."""
    folder = tmp_path_factory.mktemp("readmes")
    files = tiny_files()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        for name in ("tiny", "cifar10-images.tar.gz"):  # a folder is read like an archive
            write_files(Path(name), files)
        write_files(Path("pictures"), {name.removeprefix("train/"): files[name] for name in files if "train/" in name})
        for seed in ("0", "1", "2"):
            if seed == "2":
                patch.setattr(ImageClassifier, "on_train_epoch_start", stop)
            code = main(["fit", *TINY, *SHORT, "--trainer.max_epochs", "2", "--seed_everything", seed])
            assert code == (143 if seed == "2" else 0)
        shutil.make_archive("archive", "zip", "tiny")
        venv.create(".venv", symlinks=True)
    write_files(folder / "more", {"x.webp": next(data for name, data in files.items() if name.endswith(".webp"))})
    picture = next(data for name, data in files.items() if name.endswith(".jpg"))
    network = next(block.text for block in blocks("python") if "class MyNet" in block.text)
    network += "\n\nclass MyModel(MyNet):\n    pass\n"  # that of the tutorial has ten logits
    write_files(folder, {"cat.jpg": picture, "dog.jpg": picture, "my_net.py": network.encode()})
    return folder


def stop(model: ImageClassifier) -> None:
    if model.current_epoch == 1:
        raise SystemExit(143)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as installed: not the current folder
    monkeypatch.setattr("cifar_lit.commands.demo.threading", SimpleNamespace(Event=Stopped))
    monkeypatch.setattr("cifar_lit.commands.export.NUM_CHECKED", 100)
    monkeypatch.setattr(Synthetic.__init__, "__kwdefaults__", {"num_train": 6_000, "num_test": 200, "seed": 0})
    yield tmp_path
    sys.modules.pop("my_net", None)


class Stopped:
    """An event in place of the demo's, which ends it once its page is served."""

    def wait(self) -> None:
        raise SystemExit(0)


@pytest.mark.parametrize("block", params(different(blocks("bash"))))
@pytest.mark.usefixtures("folder", "gradio")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gradio's sockets, after the demo
def test_commands_of_a_readme_run(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in expand(block.text):
        if command.pythonpath:
            monkeypatch.syspath_prepend(str(Path(command.pythonpath).resolve()))
        run(command)
    gc.collect()


def run(command: Command) -> None:
    args = arguments(command.words)
    if args is None:
        return
    if args[1:3] == ["--ckpt_path", "last"]:  # which means a run that was stopped
        (Path("lightning_logs") / STOPPED / "checkpoints/last.ckpt").touch()
    with contextlib.ExitStack() as files:
        output = files.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if command.stdin.startswith("/tmp") or Path(command.stdin).is_file():
            files.enter_context(_stdin(Path(command.stdin)))
        assert main(shorten(args)) == 0, args
    if Path(command.stdout).is_file():
        Path(command.stdout).write_text(output.getvalue(), encoding="utf-8")


def arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of a command of ours; check another one here, and return None."""
    match words:
        case ["cifar-lit", *args] | ["python", "-m", "cifar_lit", *args]:
            return args
        case ["python", script, *rest] if Path(script).stem in COMMANDS and (ROOT / script).is_file():
            return [Path(script).stem, *rest]
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["python3", "-m", "venv", ".venv"]:  # in which the block then finds its activate
            pass
        case ["pytest", *rest]:  # the tests themselves
            check_pytest(rest)
        case _:
            pytest.fail(f"mark the block with <!-- not run: REASON -->, or teach this test to run {words}")
    return None


def shorten(args: list[str]) -> list[str]:
    """Add the tiny images and limits to a training; what the command says itself counts, up to ``MOST``."""
    if args[0] == "export":  # to ONNX takes long: tests/commands/test_export.py does that
        return ["pt2" if word == "onnx" else word for word in args]
    if args[0] not in ("fit", "sweep", "ladder"):
        return args
    for option, most in MOST.items():
        places = [place + 1 for place, word in enumerate(args[:-1]) if word == option]
        args = [str(min(int(word), most)) if place in places else word for place, word in enumerate(args)]
    if "--data.mirror" in args:  # the tiny images have none
        place = args.index("--data.mirror")
        args = [*args[:place], *args[place + 2 :]]
    kept = [word for word in SHORT if word.partition("=")[0].removeprefix("--") not in LEFT_OUT]  # in trials
    if args[0] == "ladder":
        # A run is judged by all validation images.
        short = [word for word in kept if not word.startswith(("--trainer.limit_val", "--trainer.limit_test"))]
        return [*args, *TINY, *short, *([] if "--steps" in args else ["--steps", "0,1"])]
    if "--ckpt_path" in args:  # the run's own settings count; one that has finished needs more epochs, as is said there
        return args
    epochs = [] if "--trainer.max_epochs" in args else ["--trainer.max_epochs", "1"]
    held_out = ["--data.val_size", "0.2"] * ("quick" in args)  # it wants 5,000; others hold out what they say
    short = [*TINY, *held_out, *(SHORT if args[0] == "fit" else kept), *epochs, *NARROW * (not LARGE.isdisjoint(args))]
    if args[0] != "fit" or "--config" in args:
        return [*args, *short]
    return [args[0], *short, *args[1:]]


@contextlib.contextmanager
def _stdin(path: Path) -> Iterator[None]:
    before = sys.stdin
    with path.open(encoding="latin-1") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = before


def check_pip(words: list[str]) -> None:
    """Check the extras, the addresses and the options, without the packages: nothing is installed."""
    known = PROJECT["project"]["optional-dependencies"]
    assert {name for word in words for name in re.findall(r"\[(\w+)\]", word)} <= known.keys()
    assert {word for word in words if word.startswith("-")} <= {"-e", "-f", "-i", "--index-url"}
    assert all(word.startswith("https://") for word in words if ":" in word)


def check_pytest(words: list[str]) -> None:
    """Check the files and the markers."""
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    marked = [words[place + 1] for place, word in enumerate(words) if word == "-m"]
    known = {line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert {word for expression in marked for word in expression.split()} <= known | {"or", "and", "not"}


@pytest.mark.parametrize("block", params(different(blocks("python"))))
@pytest.mark.usefixtures("folder")
def test_python_of_a_readme_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = functools.partial(lightning.pytorch.Trainer, **LIMITS)
    monkeypatch.setattr("lightning.pytorch.Trainer", limited)
    names: dict[str, Any] = {"__name__": "readme", "images": np.zeros((2, 32, 32, 3), np.uint8)}
    exec(compile(block.text, block.name, "exec"), names)
    if "probabilities" in names:
        assert names["probabilities"].sum(1).tolist() == pytest.approx([1] * len(names["probabilities"]))
    if "trainer.fit" in block.text:
        check_training(names)
        assert len(ast.parse(block.text).body) == 8


def check_training(names: dict[str, Any]) -> None:
    """Check that the best weights were tested, and that what is left is a run."""
    assert "Accuracy/test" in names["trainer"].callback_metrics
    run = Run(Path("lightning_logs") / NEXT)
    assert (run.model().predict("cat.jpg") == names["model"].predict("cat.jpg")).all()
    assert main(["predict", str(run.path), "cat.jpg"]) == 0


def test_the_training_in_python_is_the_same_everywhere() -> None:
    found = [block for block in blocks("python") if "trainer.fit" in block.text]
    assert len(found) == 2
    assert len(list(different(iter(found)))) == 1


def test_each_block_is_bash_that_runs_or_python_that_runs_or_text() -> None:
    marks = sum(len(re.findall(r"^ *(?:```|~~~)", path.read_text(encoding="utf-8"), re.M)) for path in READMES)
    assert marks == 2 * len(list(blocks("bash", "python", "text")))


def test_each_command_is_shown_in_a_readme() -> None:
    commands = "\n".join(block.text for block in blocks("bash"))
    missing = [name for name in COMMANDS if f"cifar-lit {name}" not in commands]
    assert not missing
