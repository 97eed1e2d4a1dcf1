"""The command line: arguments, errors of one line, exit codes."""

import argparse
import contextlib
import errno
import importlib
import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

import cifar_lit
from cifar_lit.checkpoint import find_checkpoint, hyper_parameters, load_checkpoint
from cifar_lit.command import CLI
from cifar_lit.machine import is_out_of_memory
from cifar_lit.parser import COMMANDS, OVERVIEW, SUBCOMMANDS, is_for_people, quieten, suggestion
from cifar_lit.recipes import RECIPES
from cifar_lit.runs import last_checkpoint, run_of
from cifar_lit.signals import ending_on_signals


def checkpoint_args(path: Path) -> list[str]:
    """Write a checkpoint's hyper-parameters as the arguments that give the same model and data.

    Args:
        path: The checkpoint file.

    Returns:
        Arguments for ``validate`` or ``test``.

    Raises:
        ValueError: If it is not one of our checkpoints.
    """
    model, data = hyper_parameters(load_checkpoint(path), path)
    del model["classes"]  # the data's, which are compared with these when the weights are loaded
    given = ["--ckpt_path", str(path), "--seed_everything", str(data.pop("seed"))]
    return [*given, "--model", json.dumps(model), "--data", json.dumps(data)]


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: A subcommand and its options; those of the process where it is None.

    Raises:
        SystemExit: With 2 for bad arguments and 1 for what went wrong later, after one line on standard error.
    """
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] in ([], ["-h"], ["--help"]):
        print(OVERVIEW, end="", file=sys.stdout if args else sys.stderr)
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        print(cifar_lit.__version__)
        sys.exit()
    if not args[0].startswith("-") and args[0] not in (*SUBCOMMANDS, *COMMANDS):
        known = (*SUBCOMMANDS, *COMMANDS)
        meant = suggestion(args[0], known)
        _fail(f"{args[0]} is no command: give one of {', '.join(known)}{meant} (--help explains them)", 2)
    quieten()
    try:
        with ending_on_signals(), _quiet_threads():
            name = "compare" if args[:1] == ["test"] and _names_several(args[1:]) else args[0]
            if name in ("compare", *COMMANDS):
                command = importlib.import_module(f"cifar_lit.{name}")  # none of the others needs it
                sys.exit(command.main(args[1:]))
            CLI(*_complete(args), command=shlex.join(["cifar-lit", *args]))
    except MisconfigurationException as error:
        _fail(error, 2)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        trouble = _trouble(error)
        if trouble:
            _fail(trouble, 1)
        if not (isinstance(error, OSError) or is_for_people(error)):
            raise
        _fail(error, 2 if isinstance(error, ValueError) else 1)


def _complete(args: list[str]) -> tuple[list[str], str]:
    """Add to the arguments what a run or a checkpoint says, and find the recipe that they begin from."""
    if args[0] in ("validate", "test") and not {"-h", "--help"} & set(args):
        if len(args) < 2 or args[1].startswith("-"):
            raise ValueError(f"{args[0]} needs a run's folder or a checkpoint as its first argument")
        args = [args[0], *checkpoint_args(find_checkpoint(Path(args[1]))), *args[2:]]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--recipe", "--ckpt_path", "--trainer.default_root_dir"):
        parser.add_argument(option, nargs="?", dest=option)
    given = vars(parser.parse_known_args(args)[0])
    path = given["--ckpt_path"]
    if args[:1] == ["fit"] and path is not None:
        if path == "last":
            path = str(last_checkpoint(Path(given["--trainer.default_root_dir"] or ".")))
            args = [*args, "--ckpt_path", path]
        elif Path(path).is_dir():
            path = str(Path(path, "checkpoints", "last.ckpt"))
            args = [*args, "--ckpt_path", path]
        run = run_of(Path(path))
        if run is not None:
            args = ["fit", "--config", str(run / "config.yaml"), *args[1:]]  # a run goes on as it began
    return args, given["--recipe"] if given["--recipe"] in RECIPES else "tutorial"


def _names_several(args: list[str]) -> bool:
    """Tell whether ``test`` is given more than one run: at the beginning, as it must be."""
    return len(args) > 1 and not any(arg.startswith("-") for arg in args[:2])


def _fail(error: object, code: int) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


def _trouble(error: BaseException) -> str:
    """Say what a person can do about what the machine could not; nothing for any other error."""
    if is_out_of_memory(error):
        return "out of memory: give a lower --data.batch_size"
    # Gloo has no error of its own for a message that did not get through.
    if isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error):
        return "another process of this training has ended, and so does this one; --ckpt_path with last.ckpt goes on"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"the disk is full ({error.strerror}): make room; --ckpt_path with last.ckpt goes on"
    return ""


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Leave out what TensorBoard's thread prints of an error that the main thread is told of, too."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type and issubclass(args.exc_type, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before
