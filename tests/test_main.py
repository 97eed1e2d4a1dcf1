"""The table of commands: help, version, exit codes, errors of one line."""

import errno
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cifar_lit
from cifar_lit.errors import UserError
from cifar_lit.main import COMMANDS, OVERVIEW, main
from tests.helpers.runs import Refused

SCRIPTS = Path(__file__).parents[1] / "scripts"


def python(code: str, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args, "-c", code], capture_output=True, text=True, timeout=60)


def replace_fit(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """Let the command fit return a number, or raise an error."""

    def fit(args: list[str]) -> int:
        if isinstance(result, BaseException):
            raise result
        return int(result)

    monkeypatch.setitem(sys.modules, "cifar_lit.cli.fit", SimpleNamespace(main=fit))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["-h"]):
        assert main(args) == 0
        assert capsys.readouterr().out == OVERVIEW
    assert main([]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", OVERVIEW)
    assert all(f"\n  {name} " in OVERVIEW for name in COMMANDS)
    assert all(len(line) <= 80 for line in OVERVIEW.splitlines())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{cifar_lit.__version__}\n"


@pytest.mark.parametrize(
    ("args", "code"), [(["--help"], 0), (["--version"], 0), ([], 2), (["prdict", "cat.jpg"], 2)], ids=str
)
def test_what_needs_no_torch_does_not_wait_for_it(args: list[str], code: int) -> None:
    done = python(
        f"import sys; from cifar_lit.main import main; code = main({args!r});"
        "print({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)); sys.exit(code)"
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_examples(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    text, marker, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert marker
    assert text.startswith(f"usage: cifar-lit {name} ")
    assert examples.startswith(f"  cifar-lit {name}")
    assert all(len(line) <= 80 for line in examples.splitlines())
    if name != "fit":  # the types that jsonargparse shows are longer
        assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_script_is_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (SCRIPTS / f"{name}.py").read_text()
    called = []

    def fake(args: Any = None, *, command: str | None = None) -> int:
        called.append((args, command))
        return 7

    monkeypatch.setattr("cifar_lit.main.main", fake)
    with pytest.raises(SystemExit) as stopped:
        exec(code, {"__name__": "__main__"})
    assert stopped.value.code == 7
    assert called == [(None, name)]


def test_an_unknown_command_is_named(refused: Refused) -> None:
    for word, expected in (
        ("train", "error: unknown command train (cifar-lit --help lists them)"),
        ("prdict", "error: unknown command prdict; did you mean predict? (cifar-lit --help lists them)"),
    ):
        assert refused([word, "x"]) == (2, expected)


def test_python_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cifar_lit", "prdict"], capture_output=True, text=True, timeout=60, cwd=SCRIPTS.parent
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command prdict")


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (0, 0),
        (3, 3),
        (SystemExit(0), 0),
        (SystemExit(None), 0),
        (SystemExit(143), 143),
        (SystemExit("text"), 1),
    ],
    ids=repr,
)
def test_the_exit_code_is_that_of_the_command(result: Any, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, result)
    assert main(["fit"]) == code
    assert main([], command="fit") == code


@pytest.mark.parametrize("code", [1, 2])
def test_an_error_for_the_user_is_one_line(code: int, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, UserError("one thing\n  and   another", exit_code=code))
    assert refused(["fit"]) == (code, "error: one thing and another")


def test_a_failure_of_the_machine_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    code, line = refused(["fit"])
    assert code == 1
    assert line.startswith("error: the disk is full (")
    replace_fit(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "results.json"))
    assert refused(["fit"]) == (1, "error: [Errno 13] Permission denied: 'results.json'")
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    replace_fit(monkeypatch, MisconfigurationException("give another limit"))
    assert refused(["fit"]) == (2, "error: give another limit")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug"), OSError(errno.ENOENT, "a bug")], ids=repr
)
def test_any_other_error_is_a_bug_and_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, error)
    with pytest.raises(type(error), match="a bug") as raised:
        main(["fit"])
    assert raised.value is error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_system_error_in_a_thread_is_not_printed_beside_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_type))

    def fail(error: Exception) -> None:
        raise error

    def fit(args: list[str]) -> int:
        for error in (OSError("disk"), ValueError("bug")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
        return 0

    monkeypatch.setitem(sys.modules, "cifar_lit.cli.fit", SimpleNamespace(main=fit))
    before = threading.excepthook
    assert main(["fit"]) == 0
    assert shown == [ValueError]
    assert threading.excepthook is before
