"""The table of commands: help, version, exit codes, errors of one line."""

import errno
import io
import os
import shlex
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cifar_lit
from cifar_lit.errors import UserError
from cifar_lit.main import COMMANDS, OVERVIEW, main
from tests.helpers.processes import environment
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused

SCRIPTS = Path(__file__).parents[1] / "scripts"


def python(code: str, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *args, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())


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


@pytest.mark.parametrize(("word", "meant"), [("train", "fit"), ("evaluate", "test"), ("tune", "sweep")])
def test_commands_that_people_try_first_name_the_right_one(word: str, meant: str, refused: Refused) -> None:
    assert refused([word])[1].startswith(f"error: unknown command {word}; did you mean {meant}?")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{cifar_lit.__version__}\n"


@pytest.mark.parametrize(
    ("args", "code"),
    [(["--help"], 0), (["fit", "--help"], 0), (["--version"], 0), ([], 2), (["prdict", "cat.jpg"], 2)],
    ids=str,
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
        ("train", "error: unknown command train; did you mean fit? (cifar-lit --help lists them)"),
        ("prdict", "error: unknown command prdict; did you mean predict? (cifar-lit --help lists them)"),
    ):
        assert refused([word, "x"]) == (2, expected)


def test_python_m_is_the_same() -> None:
    command = [sys.executable, "-m", "cifar_lit", "prdict"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
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


# The environment.


def cifar_lit_with(
    *args: str, stdout: Any = subprocess.PIPE, before: str = "pass", **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, after a line of Python, with other variables."""
    code = f"import os, sys; {before}; from cifar_lit.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=60,
        env=environment(**variables),
    )


@pytest.mark.parametrize(
    ("backend", "kept"), [("module://matplotlib_inline.backend_inline", None), ("agg", "agg")], ids=str
)
def test_a_backend_that_matplotlib_refuses_is_dropped(backend: str, kept: str | None) -> None:
    before = "import cifar_lit, matplotlib.pyplot; print(os.environ.get('MPLBACKEND'))"
    done = cifar_lit_with("--version", before=before, MPLBACKEND=backend)
    expected = backend if find_spec("matplotlib_inline") else kept
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n{cifar_lit.__version__}\n", "")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_standard_streams_may_be_closed(closed: tuple[int, ...], tmp_path: Path) -> None:
    # What is opened next must not become the standard output of a library: it gets another number.
    streams = ", ".join(f"sys.{('stdin', 'stdout', 'stderr')[number]}" for number in closed)
    before = f"[os.close(i) for i in {closed}]; {streams} = {', '.join(['None'] * len(closed))}"
    for args, code in ((["--help"], 0), (["--version"], 0), (["nothing"], 2)):
        done = cifar_lit_with(*args, before=before)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert 1 not in closed or done.stdout == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_an_output_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        for unbuffered in ("", "1"):
            done = cifar_lit_with("--version", stdout=full, PYTHONUNBUFFERED=unbuffered)
            assert done.returncode == 1
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1


def test_a_reader_may_leave() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        for unbuffered in ("", "1"):
            done = cifar_lit_with("--help", stdout=pipe, PYTHONUNBUFFERED=unbuffered)
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_a_character_shows_its_code(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))

    def fit(args: list[str]) -> int:
        print("猫 \udcff")
        return 0

    monkeypatch.setitem(sys.modules, "cifar_lit.cli.fit", SimpleNamespace(main=fit))
    assert main(["fit"]) == 0
    assert printed.getvalue().strip() == b"\\u732b \\udcff"


def test_a_working_folder_that_was_removed_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def getcwd() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", getcwd)
    line = "error: the working folder cannot be read (No such file or directory): change to another"
    assert refused(["fit"]) == (1, line)


def test_an_error_commands_no_terminal(refused: Refused) -> None:
    assert refused(["\x1b[2J"]) == (2, r"error: unknown command \x1b[2J (cifar-lit --help lists them)")


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, KeyboardInterrupt())
    assert main(["fit"]) == 130


@pytest.mark.parametrize("command", ["fit", "test"])
def test_only_a_training_is_told_to_resume(command: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_fit(monkeypatch, OSError(errno.ENOSPC, "full"))
    monkeypatch.setitem(COMMANDS, command, COMMANDS["fit"])
    resume = ": free some space, then resume with --ckpt_path" if command == "fit" else ""
    assert refused([command]) == (1, f"error: the disk is full ([Errno 28] full){resume}")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_fit_ends_with_all_its_files_in_any_environment(streams: str, tiny_args: list[str], tmp_path: Path) -> None:
    variables = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONIOENCODING": "ascii",
        "OMP_NUM_THREADS": "many",
        "COLUMNS": "1",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "TZ": "Nowhere/Here",
        "TMPDIR": str(tmp_path / "no such folder"),
        "LC_ALL": "de_DE.UTF-8",
    }
    command = shlex.join([sys.executable, "-m", "cifar_lit", "fit", *tiny_args, *FEW_EPOCHS, "--report"])
    done = subprocess.run(
        ["sh", "-c", f"umask 0; {command} {streams}"], capture_output=True, timeout=300, env=environment(**variables)
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert {"report.html", "results.json", "config.yaml", "checkpoints"} <= {path.name for path in RUN.iterdir()}
