"""Output whose reader may leave while the training goes on."""

import contextlib
import errno
import io
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from cifar_lit.files import discard_output

LOST = (errno.EPIPE, errno.EIO)
"""A pipe that was closed, as ``head`` does, and a terminal that is gone."""


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Drop what is printed once nobody can read it: a training does not end for that."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Lasting(stream)) if stream else io.StringIO() for stream in before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


class _Lasting:
    """A stream of which only ``write`` and ``flush`` differ."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._until_lost():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_lost():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in LOST:
                raise
            discard_output(self._stream)
