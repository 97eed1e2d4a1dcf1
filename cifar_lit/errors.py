"""Errors that are meant for the user, and how failures of the machine look."""

import difflib
import errno
import importlib
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An error that its message explains completely: it is shown as one line, without a traceback.

    Arguments are named in backticks (```` `batch_size` is 0: must be at least 1 ````). The command line, which knows
    its options, shows them as the user typed them (``--data.batch_size``), and exits with ``exit_code``: 2 for bad
    arguments, 1 for what went wrong later.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.options: dict[str, str] = {}

    def __str__(self) -> str:
        return re.sub(r"`(\w+)`", lambda name: self.options.get(name[1], name[0]), str(self.args[0]))


def require(name: str, value: object, is_valid: bool, expected: str) -> None:
    """Raise a ``UserError`` unless the value of an argument is valid."""
    if not is_valid:
        value = list(value) if isinstance(value, tuple) else value
        raise UserError(f"`{name}` is {value}: must be {expected}")


def import_extra(name: str, *, extra: str) -> Any:
    """Import an optional package, or raise a ``UserError`` that names the extra of this project that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise UserError(f"this needs {name}, which is not installed: pip install 'cifar-lit[{extra}]'") from error


def raised_in(error: BaseException) -> list[tuple[str, str]]:
    """Return module and function of the calls that an error came through; the last one raised it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in frames]


# What PyTorch, oneDNN and C++ say when a CPU's memory is full: they raise a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|^could not (create a (primitive|memory)( object)?|execute a primitive)$|^std::bad_alloc$"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is full."""
    torch = sys.modules.get("torch")  # without it, there is no error of torch
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


# What a system call says about the machine, and not about its arguments.
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_FAILED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN}


def explain_failure(error: BaseException) -> str:
    """Return one line about a failure of the machine; an empty string for any other error."""
    if is_out_of_memory(error):
        return "out of memory"
    distributed = sys.modules.get("torch.distributed")
    # Gloo has no error of its own for a lost connection.
    is_gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)
    if is_gloo or (distributed is not None and isinstance(error, distributed.DistError)):
        return "another process of this training exited, so this one exits"
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return f"the disk is full ({error})"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many open files ({error}): raise the limit (ulimit -n)"
    return str(error) if number in _FAILED else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for a misspelt word, or an empty string if nothing known is close to it."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
