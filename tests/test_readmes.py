"""Every command in a README runs, shortened, as it is written there.

Bash reads each fenced block and expands it; the commands are functions that only note what they were called with. They
then run in this process, in a folder with a run and pictures. A block that cannot run is marked in its README with a
comment above it: ``<!-- not run: REASON -->``.
"""

import contextlib
import gc
import io
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from cifar_lit.main import COMMANDS, main
from tests.helpers.images import tiny_files, write_files

ROOT = Path(__file__).parents[1]
READMES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "build"} & set(path.parts))
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M)
NOTE = r"""
set -eu
note() {
    printf '%s\0' "$(readlink /proc/$$/fd/0)" "$(readlink /proc/$$/fd/1)" "$@" >> noted
    printf '\n\0' >> noted
}
for command in cifar-lit pip python python3 pytest; do eval "$command() { note $command \"\$@\"; }"; done
exec 3>&1 >/dev/null
"""
TINY = ["--data.source", "images", "--data.root", "tiny", "--data.val_size", "0.2", "--data.batch_size", "8"]
SHORT = [
    "--trainer.limit_train_batches",
    "2",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.limit_test_batches",
    "1",
    "--trainer.enable_progress_bar",
    "false",
    "--no_report",
]


class Block(NamedTuple):
    name: str
    reason: str
    text: str


def blocks(language: str) -> Iterator[Block]:
    for path in READMES:
        content = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            if match["language"] == language:
                line = content.count("\n", 0, match.start("text"))
                yield Block(f"{path.relative_to(ROOT)}:{line + 1}", match["reason"] or "", match["text"])


BASH = list(blocks("bash"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare what the commands name: two runs, pictures in the layout of the README, an archive, a network."""
    folder = tmp_path_factory.mktemp("readmes")
    files = tiny_files()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        for name in ("tiny", "pictures", "cifar10-images.tar.gz"):  # a folder is read like an archive
            write_files(Path(name), files)
        for seed in ("0", "1"):
            assert main(["fit", *TINY, *SHORT, "--trainer.max_epochs", "2", "--seed_everything", seed]) == 0
        shutil.make_archive("archive", "zip", "tiny")
    write_files(folder / "more", {"x.webp": next(data for name, data in files.items() if name.endswith(".webp"))})
    write_files(folder, {"cat.jpg": next(data for name, data in files.items() if name.endswith(".jpg"))})
    network = next(block.text for block in blocks("python") if "class MyNet" in block.text)
    write_files(folder, {"my_net.py": network.encode(), ".venv/bin/activate": b""})
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("cifar_lit.commands.demo.threading", SimpleNamespace(Event=Stopped))
    return tmp_path


class Stopped:
    """An event in place of the demo's, which ends it once its page is served."""

    def wait(self) -> None:
        raise SystemExit(0)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.name, marks=[pytest.mark.skip(reason=block.reason)] if block.reason else [])
        for block in BASH
    ],
)
@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gradio's sockets, after the demo
def test_commands_of_a_readme_run(block: Block) -> None:
    for stdin, stdout, *command in expand(block.text):
        run(command, stdin, stdout)
    gc.collect()


def expand(text: str) -> Iterator[list[str]]:
    """Let bash expand the commands of a block, and return for each its files for input and output, and its words."""
    subprocess.run(["bash", "-c", NOTE + text], check=True, stdin=subprocess.DEVNULL, timeout=60)
    for call in Path("noted").read_text(encoding="utf-8").split("\0\n\0")[:-1]:
        yield call.split("\0")


def run(command: list[str], stdin: str, stdout: str) -> None:
    match command:
        case ["cifar-lit", *args]:
            pass
        case ["python", script, *rest] if Path(script).stem in COMMANDS and (ROOT / script).is_file():
            args = [Path(script).stem, *rest]
        case ["pip", "install", *words]:
            return check_extras(words)
        case ["python3", "-m", "venv", _]:
            return None
        case ["pytest", *words]:  # the tests themselves
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
            return None
        case _:
            pytest.fail(f"mark the block with <!-- not run: REASON -->, or teach this test to run {command}")
    with contextlib.ExitStack() as files:
        output = files.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if stdin.startswith("/tmp") or Path(stdin).is_file():
            files.enter_context(_stdin(Path(stdin)))
        assert main(shorten(args)) == 0, args
    if Path(stdout).is_file():
        Path(stdout).write_text(output.getvalue(), encoding="utf-8")
    return None


def shorten(args: list[str]) -> list[str]:
    """Add the tiny images and a limit to a training; what the command says itself counts."""
    if args[0] not in ("fit", "sweep"):
        return args
    if "--ckpt_path" in args:  # there, a run was stopped; here, it has finished
        return args if "--trainer.max_epochs" in args else [*args, "--trainer.max_epochs", "3"]
    epochs = [] if "--trainer.max_epochs" in args else ["--trainer.max_epochs", "1"]
    short = [*TINY, *SHORT, *epochs]
    if args[0] == "sweep" or "--config" in args:
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


def check_extras(words: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    extras = [name for word in words for name in re.findall(r"\[(\w+)\]", word)]
    assert set(extras) <= known.keys()


def test_there_are_commands_in_every_section_that_has_some() -> None:
    commands = "\n".join(block.text for block in BASH)
    missing = [name for name in COMMANDS if f"cifar-lit {name}" not in commands]
    assert not missing
