"""Signals end the process with 128 and their number, in a training after it was saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


def _known(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))  # on Windows there are few


ALWAYS = (signal.SIGTERM, signal.SIGINT)
UNLESS_IGNORED = _known("SIGHUP", "SIGQUIT", "SIGXCPU")
"""Signals that who starts the process may have it ignore, as nohup does with SIGHUP."""
UNLESS_TAKEN = _known("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGPWR")
"""Signals that end a process, unless somebody else handles them, as a profiler does."""


def _handled() -> list[signal.Signals]:
    not_ignored = [signum for signum in UNLESS_IGNORED if signal.getsignal(signum) != signal.SIG_IGN]
    return [*ALWAYS, *not_ignored, *(signum for signum in UNLESS_TAKEN if _is_free(signal.getsignal(signum)))]


def _is_free(handler: Any) -> bool:
    is_ours = handler is _exit or getattr(handler, "__func__", None) is SignalListener._remember
    return is_ours or handler == signal.SIG_DFL


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let these signals end the process with 128 and their number, even where Lightning would handle them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (*_handled(), *_known("SIGUSR1"))
    before = {signum: signal.getsignal(signum) or signal.SIG_DFL for signum in signals}
    exit_at_once_on_signals()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def exit_at_once_on_signals() -> None:
    """Install the handlers; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        for signum in _handled():
            signal.signal(signum, _exit)


def _exit(signum: int, _frame: Any) -> None:
    raise SystemExit(128 + signum)


class SignalListener:
    """Remembers the number of a signal (``received``, 0 for none) until the training can act on it."""

    def __init__(self) -> None:
        self.received = 0
        self._requeue: Any = None

    def listen(self) -> None:
        """Install the handlers; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in _handled():
            signal.signal(signum, self._remember)
        for signum in _known("SIGUSR1"):  # only now: Lightning takes it on a SLURM cluster if it is free
            handler = signal.getsignal(signum)
            if handler != signal.SIG_IGN:
                self._requeue = handler if callable(handler) else None  # it would save in the middle of a step
                signal.signal(signum, self._remember)

    def requeue(self, signum: int) -> bool:
        """Let Lightning put the job into SLURM's queue again, if that is what the signal asks for."""
        if self._requeue is None or signum not in _known("SIGUSR1"):
            return False
        self.received = 0
        self._requeue(signum, None)
        return True

    def _remember(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT:
            if self.received == signum:
                os._exit(128 + signum)  # a file that is being written has not got its name yet
            with contextlib.suppress(OSError):  # os.write, because print may be what was interrupted
                os.write(2, b"\nsaving, then stopping; Ctrl-C again stops at once\n")
        self.received = signum
