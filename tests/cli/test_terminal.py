"""Output whose reader has left."""

import errno
import os
import sys
from collections.abc import Callable

import pytest

from cifar_lit.cli.terminal import lasting_output


@pytest.mark.parametrize("buffering", [1, -1], ids=["line", "block"])
@pytest.mark.parametrize("connect", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_what_nobody_can_read_is_dropped(
    connect: Callable[[], tuple[int, int]], buffering: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = connect()
    with open(write_end, "w", buffering=buffering) as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", pipe)
        with lasting_output():
            print("first", flush=True)
            assert os.read(read_end, 9).split() == [b"first"]
            os.close(read_end)
            for _ in range(3):
                print("lost" * 5000, flush=True)
            assert not sys.stdout.isatty()
        print("and afterwards", flush=True)
        assert sys.stdout is pipe


def test_a_process_without_output_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output():
        print("nothing")
        assert not sys.stdout.isatty()


def test_other_errors_of_the_output_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> int:
        raise OSError(errno.ENOSPC, "full")

    with lasting_output(), monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "_stream", type("Full", (), {"write": staticmethod(fail)}))
        with pytest.raises(OSError, match="full"):
            print("text")
