"""Downloads from servers that stall, close the connection, fail, or send another file, with and without ranges."""

import hashlib
import os
from pathlib import Path

import pytest

from cifar_lit.data import download as downloads
from cifar_lit.data.download import download
from cifar_lit.errors import UserError
from tests.helpers.server import Behaviour, serving

BODY = os.urandom(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TIMEOUT_SECONDS", 0.5), ("NUM_TRIES", 3), ("PAUSE_SECONDS", 0.01)):
        monkeypatch.setattr(downloads, name, value)


def fetch(*urls: str) -> bytes:
    path = Path("archive.tar.gz")
    download(urls, path, md5=MD5)
    assert not path.with_name("archive.tar.gz.part").exists()
    return path.read_bytes()


def failure(*urls: str) -> str:
    """Download in vain: there is no file, and one line says why."""
    with pytest.raises(UserError) as error:
        fetch(*urls)
    assert not Path("archive.tar.gz").exists()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    return str(error.value)


@pytest.mark.parametrize("length", [True, False])
def test_a_good_server_gives_the_file_in_one_request(length: bool) -> None:
    behaviour = Behaviour(BODY, length=length)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == [""]


def test_a_broken_transfer_is_resumed() -> None:
    # More cuts than tries: a try that got further does not count.
    behaviour = Behaviour(BODY, cut_at=50_000, cuts=5)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["", *(f"bytes={n}-" for n in range(50_000, 300_000, 50_000))]


def test_without_ranges_it_starts_anew() -> None:
    behaviour = Behaviour(BODY, ranges=False, cut_at=100_000, cuts=2)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["", "bytes=100000-", "bytes=100000-"]


def test_a_server_that_breaks_off_now_here_now_there_is_left_in_the_end() -> None:
    behaviour = Behaviour(BODY, ranges=False, cuts=50)
    behaviour.cut_points = [50_000, 90_000] * 25
    with serving(behaviour) as url:
        failure(url)
    assert len(behaviour.requests) < 10


def test_a_part_of_an_earlier_start_is_resumed() -> None:
    Path("archive.tar.gz.part").write_bytes(BODY[:123_456])
    behaviour = Behaviour(BODY)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["bytes=123456-"]


@pytest.mark.parametrize("left_over", [b"wrong" * 1000, BODY + b"more", os.urandom(300_000)])
def test_a_wrong_part_of_an_earlier_start_is_thrown_away(left_over: bytes) -> None:
    Path("archive.tar.gz.part").write_bytes(left_over)
    with serving(Behaviour(BODY)) as url:
        assert fetch(url) == BODY


def test_a_complete_part_of_an_earlier_start_needs_no_more() -> None:
    Path("archive.tar.gz.part").write_bytes(BODY)
    behaviour = Behaviour(BODY)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["bytes=300000-"]


def test_passing_errors_are_tried_again() -> None:
    with serving(Behaviour(BODY, statuses=[500, 503])) as url:
        assert fetch(url) == BODY


def test_a_missing_file_is_not_asked_for_again_and_the_next_url_is_tried() -> None:
    missing = Behaviour(BODY, statuses=[404] * 9)
    with serving(missing) as bad, serving(Behaviour(BODY)) as good:
        assert fetch(bad, good) == BODY
    assert missing.requests == [""]


def test_a_stalling_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "NUM_TRIES", 1)
    with serving(Behaviour(BODY, stall_seconds=5)) as slow, serving(Behaviour(BODY)) as good:
        assert fetch(slow, good) == BODY


def test_what_one_url_began_another_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "NUM_TRIES", 1)
    good = Behaviour(BODY)
    with serving(Behaviour(BODY, cut_at=100_000, cuts=1)) as bad, serving(good) as url:
        assert fetch(bad, url) == BODY
    assert good.requests == ["bytes=100000-"]


def test_the_failure_of_every_url_is_in_the_message() -> None:
    other = Behaviour(b"something else" * 1000)
    with (
        serving(Behaviour(BODY, statuses=[404])) as missing,
        serving(Behaviour(BODY, statuses=[500] * 9)) as broken,
        serving(other) as wrong,
        serving(Behaviour(BODY, stall_seconds=5)) as stalling,
        serving(Behaviour(BODY, ranges=False, cut_at=1000, cuts=9)) as cutting,
    ):
        message = failure(
            missing, broken, wrong, stalling, cutting, "http://127.0.0.1:9/closed", "file:///etc/hostname"
        )
    for part in (
        f"{missing}: answered 404",
        f"{broken}: answered 500",
        f"{wrong}: sent another file (checksum mismatch)",
        f"{stalling}: timed out",
        f"{cutting}: the transfer ended at 1,000 of 300,000 bytes",
        "http://127.0.0.1:9/closed: cannot be reached (",
        "file:///etc/hostname: only http and https are supported",
        "`mirror` URL",
        "put the archive at archive.tar.gz by hand",
        "`source` synthetic",
        "images",
    ):
        assert part in message
    assert other.requests == [""]


def test_a_body_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 100_000)
    with serving(Behaviour(BODY)) as url:
        assert "sent more than 100,000 bytes" in failure(url)
    assert not Path("archive.tar.gz.part").exists()
