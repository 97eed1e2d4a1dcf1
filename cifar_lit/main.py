"""The command line: one table of commands, and exceptions -> exit codes. Imports neither torch nor Lightning."""

import importlib
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cifar_lit
from cifar_lit.errors import UserError, explain_failure, suggest
from cifar_lit.files import discard_output, printable
from cifar_lit.signals import exit_on_signals

COMMANDS = {
    "fit": ("cifar_lit.cli.fit", "train, keep the best checkpoint on validation, test it once"),
    "test": ("cifar_lit.commands.test", "score a run on validation and test"),
    "validate": ("cifar_lit.commands.validate", "score a run on validation only"),
    "compare": ("cifar_lit.commands.compare", "compare runs: spread over seeds, McNemar's test"),
    "predict": ("cifar_lit.commands.predict", "classify images of your own"),
    "explain": ("cifar_lit.commands.explain", "show the shapes, parameters and formulas of a network's layers"),
    "demo": ("cifar_lit.commands.demo", "classify images in the browser"),
    "export": ("cifar_lit.commands.export", "write the model as ONNX, torch.export or safetensors"),
    "sweep": ("cifar_lit.commands.sweep", "search for hyper-parameters, judged on validation"),
    "download": ("cifar_lit.commands.download", "download a dataset, and nothing else"),
    "ladder": ("cifar_lit.commands.ladder", "train from the tutorial's settings to the best, one idea at a time"),
    "paired": ("cifar_lit.commands.paired", "train two settings with equal seeds: what the second adds"),
}
"""Each command: the module whose ``main(args) -> exit code`` it is, and what it does."""
SYNONYMS = {
    **dict.fromkeys(("train", "training", "run", "resume", "learn"), "fit"),
    **dict.fromkeys(("evaluate", "eval", "score"), "test"),
    **dict.fromkeys(("infer", "inference", "classify"), "predict"),
    **dict.fromkeys(("tune", "search", "optimize", "hpo"), "sweep"),
    **dict.fromkeys(("serve", "app", "gui", "web"), "demo"),
    **dict.fromkeys(("fetch", "get", "prepare"), "download"),
    **dict.fromkeys(("summary", "layers", "model"), "explain"),
    **{"convert": "export", "onnx": "export", "val": "validate", "diff": "compare"},
    **dict.fromkeys(("experiment", "pair", "ab", "ablation", "ablate"), "paired"),
}
"""What a command is called elsewhere, and here."""
_ROWS = "\n".join(f"  {name:<11}{summary}" for name, (_, summary) in COMMANDS.items())
OVERVIEW = f"""\
usage: cifar-lit COMMAND [options]

Train image classifiers on CIFAR-10 or on images of your own.

{_ROWS}

cifar-lit COMMAND --help shows the options and examples of a command.
In a checkout, python scripts/COMMAND.py is the same.
"""
WAYS_OUT = {
    "out of memory": ": reduce --data.batch_size",
    "the disk is full": ": free some space, then resume with --ckpt_path",
    "another process": "; resume with --ckpt_path",
}
"""How a training goes on after a failure of the machine, by the start of its explanation."""


def main(args: Sequence[str] | None = None, *, command: str | None = None) -> int:
    """Run the command line with ``args``, by default those of the process, and return the exit code.

    That is 0, 2 for bad arguments, 1 for what went wrong later, 130 and 143 for SIGINT and SIGTERM. An error is printed
    as one line on standard error. ``command`` is put before the arguments.
    """
    args = [*([command] if command else []), *(sys.argv[1:] if args is None else args)]
    _prepare_streams()
    try:
        code = _run(args)
    except SystemExit as stopped:  # of argparse and of signals
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except KeyboardInterrupt:  # in a thread that cannot handle signals
        code = 130
    return _flush_output(code)


def _run(args: Sequence[str]) -> int:
    try:
        if args[:1] in ([], ["-h"], ["--help"]):
            print(OVERVIEW, end="", file=sys.stdout if args else sys.stderr)
            return 0 if args else 2
        if args[0] == "--version":
            print(cifar_lit.__version__)
            return 0
        if args[0] not in COMMANDS:
            raise UserError(f"unknown command {args[0]}{_suggest_command(args[0])} (cifar-lit --help lists them)")
        if args[0] == "fit" and not {"-h", "--help"}.isdisjoint(args):  # before torch is loaded
            print(importlib.import_module("cifar_lit.cli.help").format_help(), end="")
            return 0
        _check_working_folder()
        with exit_on_signals(), _quiet_threads():
            return int(importlib.import_module(COMMANDS[args[0]][0]).main(args[1:]))
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # whoever reads the output has left, as head does: no error, but for unfinished work
        return 128 + 13 if args[0] in COMMANDS else 0
    except Exception as error:
        lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
        if lightning is not None and isinstance(error, lightning.MisconfigurationException):
            return _fail(str(error), 2)  # Lightning's type for errors that are meant for the user
        explanation = explain_failure(error)
        if not explanation:
            raise
        ways_out = WAYS_OUT.items() if args[0] == "fit" else ()
        return _fail(explanation + "".join(way for start, way in ways_out if explanation.startswith(start)), 1)


def _suggest_command(word: str) -> str:
    return f"; did you mean {SYNONYMS[word]}?" if word in SYNONYMS else suggest(word, COMMANDS)


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return exit_code


def _check_working_folder() -> None:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:  # it was removed: not even torch can be loaded
        raise UserError(
            f"the working folder cannot be read ({error.strerror}): change to another", exit_code=1
        ) from error


def _prepare_streams() -> None:
    """Open the standard streams that are closed, and let the others escape what their encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # the lowest free number: no file of ours becomes the standard output of a library
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def _flush_output(code: int) -> int:
    """Write out what was printed, while a failure still has an exit code."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output(sys.stdout)  # Python flushes it once more when it exits
        if not isinstance(error, BrokenPipeError):  # whoever reads it may leave, as head does
            return code or _fail(f"standard output cannot be written ({error.strerror})", 1)
    return code


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Suppress the traceback of TensorBoard's thread for a system error that the main thread reports, too."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type and issubclass(args.exc_type, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before
