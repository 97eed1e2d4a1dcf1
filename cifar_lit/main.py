"""The command line: one table of commands, and exceptions -> exit codes. Imports neither torch nor Lightning."""

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cifar_lit
from cifar_lit.errors import UserError, explain_failure, suggest
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
}
"""Each command: the module whose ``main(args) -> exit code`` it is, and what it does."""
_ROWS = "\n".join(f"  {name:<11}{summary}" for name, (_, summary) in COMMANDS.items())
OVERVIEW = f"""\
usage: cifar-lit COMMAND [options]

Train image classifiers on CIFAR-10 or on images of your own.

{_ROWS}

cifar-lit COMMAND --help shows the options and examples of a command.
In a checkout, python scripts/COMMAND.py is the same.
"""


def main(args: Sequence[str] | None = None, *, command: str | None = None) -> int:
    """Run the command line with ``args``, by default those of the process, and return the exit code.

    That is 0, 2 for bad arguments, 1 for what went wrong later, 130 and 143 for SIGINT and SIGTERM. An error is printed
    as one line on standard error. ``command`` is put before the arguments.
    """
    args = [*([command] if command else []), *(sys.argv[1:] if args is None else args)]
    if args[:1] in ([], ["-h"], ["--help"]):
        print(OVERVIEW, end="", file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] == "--version":
        print(cifar_lit.__version__)
        return 0
    try:
        if args[0] not in COMMANDS:
            raise UserError(f"unknown command {args[0]}{suggest(args[0], COMMANDS)} (cifar-lit --help lists them)")
        with exit_on_signals(), _quiet_threads():
            return int(importlib.import_module(COMMANDS[args[0]][0]).main(args[1:]))
    except SystemExit as stopped:  # of argparse and of signals
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
        if lightning is not None and isinstance(error, lightning.MisconfigurationException):
            return _fail(str(error), 2)  # Lightning's type for errors that are meant for the user
        explanation = explain_failure(error)
        if not explanation:
            raise
        return _fail(explanation, 1)


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Suppress the traceback of TensorBoard's thread for a system error that the main thread reports, too."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type and issubclass(args.exc_type, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before
