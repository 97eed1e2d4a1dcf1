"""Signals: exit codes, and a listener that remembers."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cifar_lit.signals import UNLESS_IGNORED, UNLESS_TAKEN, SignalListener, exit_on_signals

HANDLED = (signal.SIGTERM, signal.SIGINT, *UNLESS_IGNORED, *UNLESS_TAKEN)


@pytest.fixture(autouse=True)
def _same_handlers_afterwards() -> Iterator[None]:
    handlers = {signum: signal.getsignal(signum) for signum in (*HANDLED, signal.SIGUSR1)}
    for signum in UNLESS_IGNORED:
        signal.signal(signum, signal.SIG_DFL)  # also where the tests run under nohup
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_ends_the_process_with_its_code(signum: int) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(SystemExit) as stopped, exit_on_signals():
        signal.raise_signal(signum)
    assert stopped.value.code == 128 + signum
    assert [signal.getsignal(number) for number in HANDLED] == before


@pytest.mark.parametrize("signum", UNLESS_IGNORED)
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(signum: int) -> None:
    signal.signal(signum, signal.SIG_IGN)  # as nohup does
    with exit_on_signals():
        signal.raise_signal(signum)
        listener = SignalListener()
        listener.listen()
        signal.raise_signal(signum)
    assert listener.received == 0


@pytest.mark.parametrize("signum", UNLESS_TAKEN)
def test_a_signal_that_somebody_handles_is_left_to_them(signum: int) -> None:
    seen: list[int] = []
    signal.signal(signum, lambda number, _: seen.append(number))
    with exit_on_signals():
        listener = SignalListener()
        listener.listen()
        signal.raise_signal(signum)
    assert (seen, listener.received) == ([signum], 0)


def test_a_signal_of_a_batch_system_is_remembered_and_asks_for_no_requeue() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    with exit_on_signals():
        listener = SignalListener()
        listener.listen()
        signal.raise_signal(signal.SIGUSR1)
        assert (listener.received, listener.requeue(signal.SIGUSR1)) == (signal.SIGUSR1, False)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_in_another_thread_nothing_is_installed() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    seen: list[Any] = []

    def work() -> None:
        SignalListener().listen()
        with exit_on_signals():
            seen.extend(signal.getsignal(number) for number in HANDLED)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_a_listener_remembers_a_signal(capfd: pytest.CaptureFixture[str]) -> None:
    listener = SignalListener()
    listener.listen()
    assert listener.received == 0
    signal.raise_signal(signal.SIGTERM)
    assert listener.received == signal.SIGTERM
    assert capfd.readouterr().err == ""
    signal.raise_signal(signal.SIGINT)
    assert listener.received == signal.SIGINT
    assert capfd.readouterr().err == "\nsaving, then stopping; Ctrl-C again stops at once\n"


def test_a_second_interrupt_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    listener = SignalListener()
    listener.listen()
    signal.raise_signal(signal.SIGINT)
    assert codes == []
    signal.raise_signal(signal.SIGINT)
    assert codes == [130]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of SLURM")
def test_a_job_is_requeued_as_lightning_does_it() -> None:
    requeued = []
    signal.signal(signal.SIGUSR1, lambda signum, _: requeued.append(signum))
    listener = SignalListener()
    listener.listen()
    signal.raise_signal(signal.SIGUSR1)
    assert (listener.received, requeued) == (signal.SIGUSR1, [])  # not in the middle of a step
    assert listener.requeue(listener.received)
    assert (listener.received, requeued) == (0, [signal.SIGUSR1])
    assert not listener.requeue(signal.SIGTERM)
