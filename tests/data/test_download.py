"""Downloads from servers that stall, close the connection, fail, or send another file, with and without ranges."""

import hashlib
import os
import re
import socket
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
    for name, value in (("TIMEOUT_SECONDS", 0.5), ("TRIAL_SECONDS", 0.5), ("PAUSE_SECONDS", 0.01)):
        monkeypatch.setattr(downloads, name, value)


def fetch(*urls: str) -> bytes:
    path = Path("archive.tar.gz")
    download(urls, path, md5=MD5)
    assert not list(Path().glob("archive.tar.gz.part*"))
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
    behaviour = Behaviour(BODY, cut_points=[50_000, *[50_000 + downloads.OVERLAP] * 4], cuts=5)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["", *(f"bytes={n - downloads.OVERLAP}-" for n in range(50_000, 300_000, 50_000))]


def test_without_ranges_it_starts_anew() -> None:
    behaviour = Behaviour(BODY, ranges=False, cut_at=100_000, cuts=2)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert behaviour.requests == ["", *[f"bytes={100_000 - downloads.OVERLAP}-"] * 2]


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
    assert behaviour.requests == [f"bytes={123_456 - downloads.OVERLAP}-"]


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
    assert behaviour.requests == [f"bytes={300_000 - downloads.OVERLAP}-"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_errors_are_tried_again(status: int) -> None:
    behaviour = Behaviour(BODY, statuses=[status] * 2)
    with serving(behaviour) as url:
        assert fetch(url) == BODY
    assert len(behaviour.requests) == 3


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
    assert good.requests == [f"bytes={100_000 - downloads.OVERLAP}-"]


def test_the_failure_of_every_url_is_in_the_message() -> None:
    other = Behaviour(b"something else" * 1000)
    with (
        serving(Behaviour(BODY, statuses=[404])) as missing,
        serving(Behaviour(BODY, statuses=[500] * 9)) as broken,
        serving(other) as wrong,
        serving(Behaviour(BODY, stall_seconds=5, ranges=False)) as stalling,
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


PART = BODY[:250_000]
PORTAL = b"<html>please log in</html>"


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (Behaviour(PORTAL, ranges=False), "sent another file (checksum mismatch)"),
        (Behaviour(PORTAL * 20_000), "sent another file (checksum mismatch)"),
        (Behaviour(PORTAL), "sent another file (checksum mismatch)"),  # answers 416 first
        (Behaviour(BODY[:260_000] + os.urandom(40_000)), "sent another file (checksum mismatch)"),
        (Behaviour(BODY[:260_000]), "sent another file (checksum mismatch)"),
        (Behaviour(BODY, range_shift=-7, cut_at=1000, cuts=9), "the transfer ended at 1,000 of 300,000 bytes"),
        (Behaviour(PORTAL, ranges=False, cut_at=9, cuts=9), "the transfer ended at 9 of 26 bytes"),
    ],
    ids=["portal", "another file", "416", "another end", "too short", "another range", "a portal that breaks off"],
)
def test_good_bytes_are_kept_until_a_better_file_is_verified(behaviour: Behaviour, says: str) -> None:
    part = Path("archive.tar.gz.part")
    part.write_bytes(PART)
    with serving(behaviour) as bad:
        assert says in failure(bad)
    assert part.read_bytes() == PART
    good = Behaviour(BODY)
    with serving(good) as url:  # the next start, in another network
        assert fetch(url) == BODY
    assert good.requests == [f"bytes={250_000 - downloads.OVERLAP}-"]


def test_a_damaged_part_is_kept_until_the_new_file_is_verified() -> None:
    part, new = Path("archive.tar.gz.part"), Path("archive.tar.gz.part.new")
    damaged = b"x" + PART[1:]
    part.write_bytes(damaged)
    behaviour = Behaviour(BODY)
    behaviour.cut_points, behaviour.cuts = [300_000, 120_000, 0, 0], 4
    with serving(behaviour) as url:
        failure(url)
    assert (part.read_bytes(), new.read_bytes()) == (damaged, BODY[:120_000])
    with serving(Behaviour(BODY)) as url:
        assert fetch(url) == BODY


@pytest.mark.parametrize("announced", [400_000, "many", -1])
def test_a_wrong_length_does_not_matter_where_the_checksum_matches(announced: str | int) -> None:
    with serving(Behaviour(BODY, announced=announced)) as url:
        assert fetch(url) == BODY


def test_a_server_that_sends_too_slowly_is_left_and_what_it_sent_is_used() -> None:
    slow, good = Behaviour(BODY, byte_seconds=0.05), Behaviour(BODY)
    with serving(slow) as bad, serving(good) as url:
        assert fetch(bad, url) == BODY
        assert len(slow.requests) == 1
        Path("archive.tar.gz").unlink()
        assert re.search(rf"{bad}: sent only \d+ bytes per second", failure(bad))


def test_a_server_that_closes_after_each_few_bytes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.05)
    behaviour = Behaviour(BODY, cut_at=1, cuts=99, ranges=False)
    behaviour.cut_points = list(range(1, 99))
    with serving(behaviour) as url:
        failure(url)
    assert len(behaviour.requests) <= 4


def test_redirects_are_followed_but_not_for_ever_nor_to_another_protocol() -> None:
    with serving(Behaviour(BODY)) as good, serving(Behaviour(BODY, redirect=good)) as url:
        assert fetch(url) == BODY
    Path("archive.tar.gz").unlink()
    round_and_round = Behaviour(BODY)
    with serving(round_and_round) as url:
        round_and_round.redirect = url
        assert "answered 302" in failure(url)
        round_and_round.redirect = "file:///etc/hostname"
        assert "answered 302" in failure(url)


def test_a_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Behaviour(BODY)
    with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        assert fetch("http://example.invalid/archive.tar.gz") == BODY
    assert len(proxy.requests) == 1


def test_a_proxy_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    line = failure("http://example.invalid/archive.tar.gz")
    assert re.search(r"cannot be reached \(.*[Cc]onnection refused\)", line), line


def test_a_server_that_accepts_and_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "NUM_TRIES", 1)
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert re.search("timed out|no answer", failure(f"http://127.0.0.1:{silent.getsockname()[1]}/archive.tar.gz"))
