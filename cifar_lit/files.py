"""Atomic writes: under its final name a file is always complete. Names as a terminal may print them."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (C0, C1), line separators, marks that turn the direction, and bytes that are no text."""


def write_atomic(path: Path, write: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that its name always refers to complete content: the old until the new is on the disk.

    The content is written next to the final place under a random name, flushed to the disk and renamed. It is given as
    bytes, as text (encoded as UTF-8), or as a function that writes it to an open file.
    """
    part = path.with_name(f".{path.name}.{os.urandom(16).hex()}.part")
    try:
        with part.open("xb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # flush the rename as well, where the system can flush folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def quote(path: str) -> str:
    """Return a path as it is typed into a shell: that of Windows knows no single quotes."""
    return subprocess.list2cmdline([path]) if sys.platform == "win32" else shlex.quote(path)


def shorten(path: str | Path) -> str:
    """Return a path relative to the working folder; on another drive, the path as it was."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def discard_output(stream: IO[str]) -> None:
    """Let what is still written to a stream go nowhere: whoever reads it has left."""
    with contextlib.suppress(OSError, ValueError):  # what is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def printable(text: str) -> str:
    """Return a name with each character that would command the terminal, or break the line, as its escape."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
