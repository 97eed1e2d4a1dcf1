"""SIGTERM and SIGINT end the process with 143 and 130, where nothing is to be saved first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the process with 143 and 130, also where Lightning would see to them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) or signal.SIG_DFL for signum in (signal.SIGTERM, signal.SIGINT)}
    end_at_once_on_signals()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def end_at_once_on_signals() -> None:
    """Take the signals into our hands, in the main thread, where alone that is possible."""
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, _end_at_once)


def _end_at_once(signum: int, _frame: Any) -> None:
    raise SystemExit(128 + signum)
