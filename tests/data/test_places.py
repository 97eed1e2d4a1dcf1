"""Where a file is downloaded from: places that are slow, turn slow, stall or lie, and the rule with its constants."""

import hashlib
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import pytest

from cifar_lit.data import download as downloads
from cifar_lit.data.download import _Place, _Places, download
from tests.helpers.server import Behaviour, serving

BODY = os.urandom(120_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    values = {"TIMEOUT_SECONDS": 0.5, "TRIAL_SECONDS": 0.2, "MOVE_SECONDS": 0.1, "PAUSE_SECONDS": 0.01, "OVERLAP": 100}
    for name, value in {} if "simulate" in request.fixturenames else values.items():
        monkeypatch.setattr(downloads, name, value)


def fetch(*behaviours: Behaviour) -> list[str]:
    """Download from servers, check the file, and return their URLs."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(behaviour)) for behaviour in behaviours]
        download(urls, Path("archive.tar.gz"), md5=MD5)
    assert Path("archive.tar.gz").read_bytes() == BODY
    assert not list(Path().glob("*.part*"))
    return urls


def test_a_slow_place_is_left_and_a_fast_one_goes_on_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = Behaviour(BODY, slow_rate=20_000), Behaviour(BODY)
    urls = fetch(slow, fast)
    assert slow.num_sent < 60_000  # of 120,000
    assert len(slow.requests) == len(fast.requests) == 1
    assert int(fast.requests[0].removeprefix("bytes=").rstrip("-")) >= 1000
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("archive.tar.gz: 0.1 MB in ")
    assert line.endswith(f" MB/s, from {urls[1]}")


def test_a_place_that_stalls_is_left_before_it_goes_on() -> None:
    stalling, good = Behaviour(BODY, stall_seconds=10), Behaviour(BODY)
    fetch(stalling, good)
    assert [stalling.requests, good.requests] == [[""], ["bytes=59900-"]]


def test_a_busy_place_is_asked_again_where_the_others_are_slow() -> None:
    slow, busy = Behaviour(BODY, slow_rate=20_000), Behaviour(BODY, statuses=[503])
    fetch(slow, busy)
    assert len(busy.requests) == 2


@pytest.mark.parametrize("liar_is", [0, 1])
def test_a_place_that_lies_is_left_and_what_an_honest_one_sent_is_used(liar_is: int) -> None:
    liar, slow, fast = Behaviour(os.urandom(120_000)), Behaviour(BODY, slow_rate=20_000), Behaviour(BODY)
    fetch(*([liar, slow, fast] if liar_is == 0 else [slow, liar, fast]))
    assert len(liar.requests) == (1 if liar_is == 0 else 2)  # beside what another sent, and from the start
    assert fast.requests[0].startswith("bytes=")


def test_a_slow_liar_does_not_spoil_the_file() -> None:
    liar, fast = Behaviour(os.urandom(120_000), slow_rate=20_000), Behaviour(BODY)
    fetch(liar, fast)
    assert len(liar.requests) == 1


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, list[str]]]:
    """Download at rates that are functions of the seconds since the start, by a clock that does not wait."""
    clock = SimpleNamespace(now=0.0)

    def wait(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(downloads, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=wait))

    def run(size: int, *rates: Callable[[float], float]) -> tuple[float, list[str]]:
        asked: list[str] = []

        class Response(BytesIO):
            status, url, length = 206, "", 0
            headers: dict[str, str]

            def read1(self, _: int | None = 0, /) -> bytes:
                rate = rates[int(self.url[-1])](clock.now)
                wait(1.0 if rate else downloads.TIMEOUT_SECONDS)
                if not rate:
                    raise TimeoutError("timed out")
                return self.read(int(rate))

        def start(request: Request) -> Any:
            asked.append(request.full_url[-1])
            at = int(str(request.get_header("Range", "0")).removeprefix("bytes=").rstrip("-"))
            response = Response(bytes(size - at))
            response.url, response.length = request.full_url, size - at
            response.headers = {"Content-Range": f"bytes {at}-"}
            return response

        monkeypatch.setattr(downloads, "_open", start)
        urls = [f"http://place/{number}" for number in range(len(rates))]
        download(urls, Path("archive.tar.gz"), md5=hashlib.md5(bytes(size)).hexdigest())
        return clock.now, asked

    return run


def test_of_slow_places_the_fastest_is_kept(simulate: Callable[..., tuple[float, list[str]]]) -> None:
    seconds, asked = simulate(9_000_000, lambda _: 10e3, lambda _: 50e3, lambda _: 12e3)
    assert asked == ["0", "1", "2", "1"]
    assert 15 + 8_500_000 / 50e3 < seconds < 15 + 9_000_000 / 50e3


def test_a_fast_place_that_turns_slow_is_left_for_one_that_is_known(
    simulate: Callable[..., tuple[float, list[str]]],
) -> None:
    seconds, asked = simulate(9_000_000, lambda _: 50e3, lambda now: 500e3 if now < 10 else 5e3)
    assert asked == ["0", "1", "0"]
    assert 15 + 6_000_000 / 50e3 < seconds < 15 + 6_500_000 / 50e3


def test_the_places_of_a_bad_day(simulate: Callable[..., tuple[float, list[str]]]) -> None:
    # Slow, silent, and good at last: 15 minutes at the first.
    seconds, asked = simulate(9_000_000, lambda _: 10e3, lambda _: 0, lambda _: 500e3)
    assert asked == ["0", "1", "2"]
    assert seconds < 5 + 8 + 20


def test_a_fast_place_that_is_silent_for_a_while_is_left_and_asked_again(
    simulate: Callable[..., tuple[float, list[str]]],
) -> None:
    seconds, asked = simulate(9_000_000, lambda _: 10e3, lambda now: 0 if 10 < now < 25 else 500e3)
    assert asked == ["0", "1", "0", "1"]
    assert seconds < 5 + 20 + 8 + 12


@pytest.mark.parametrize(
    "rates",
    [
        [lambda now: 60e3 * math.exp(-now / 200)] * 3,
        [lambda now, number=number: 20e3 if (now // 10) % 2 == number else 5e3 for number in (0, 1)],
    ],
    ids=["ever slower", "slow in turn"],
)
def test_there_are_few_moves(
    rates: list[Callable[[float], float]], simulate: Callable[..., tuple[float, list[str]]]
) -> None:
    seconds, asked = simulate(9_000_000, *rates)
    assert seconds > 200
    assert len(asked) < 12


INF = math.inf


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ((3e6, INF), 0),  # 57 s for what is missing
        ((2e6, INF), 1),
        ((70e3, 80e3), 1),
        ((79e3, 80e3), 0),  # nothing gained
        ((80e3, 70e3), 0),
        ((70e3, INF, INF), 1),
        ((70e3, 75e3, 90e3), 2),
        ((INF, INF), 0),
    ],
)
def test_the_place_with_the_earliest_end_is_chosen(
    rates: tuple[float, ...], chosen: int, simulate: Callable[..., tuple[float, list[str]]]
) -> None:
    places = _Places([_Place("", [], rate=rate) for rate in rates], num_missing=170_000_000)
    assert places.choose(places.all[0]) is places.all[chosen]
