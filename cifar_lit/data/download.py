"""Download of one file from several URLs, with resumed transfers and a checksum."""

import errno
import hashlib
import http.client
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from cifar_lit.errors import UserError
from cifar_lit.files import printable

BLOCK = 1 << 16
OVERLAP = 1 << 14  # bytes that are compared before others are appended to them
MAX_BYTES = 1 << 30  # so that a server that never ends cannot fill the disk
TIMEOUT_SECONDS = 8.0  # how long a server may be silent
TRIAL_SECONDS = 5.0  # how long a rate is measured
MOVE_SECONDS = 60.0  # how much earlier another place must promise the end
MIN_RATE = 1000.0  # bytes per second: a slower transfer has failed
NUM_TRIES = 3  # without progress, per place
PAUSE_SECONDS = 1.0  # before a second try; doubled for each further one
OTHER = "sent another file (checksum mismatch)"


class _OtherFileError(Exception):
    """The server has other bytes than those that are there."""


class _LeftError(Exception):
    """Another place promises an earlier end."""


@dataclass(eq=False)
class _Place:
    """What is known of a URL."""

    url: str
    files: list[Path]  # what to complete from it: the first, and after other bytes the next one
    rate: float = math.inf  # bytes per second, as measured last
    num_failures: int = 0  # since its last progress


@dataclass
class _Places:
    """The places that may have a file, and what is left to transfer."""

    all: list[_Place]
    num_missing: int = MAX_BYTES  # bytes, where no length was announced
    num_received: int = 0

    def choose(self, current: _Place | None, failed: _Place | None = None) -> _Place:
        """Return the place that promises the earliest end, by the rule of ``download``."""
        others = [place for place in self.all if place is not failed] or self.all
        return min(
            others,
            key=lambda place: (
                self.num_missing / place.rate + MOVE_SECONDS * (place.num_failures + (place is not current))
            ),
        )


def download(urls: Sequence[str], path: Path, *, md5: str) -> None:
    """Download a file from where it comes fastest; it gets its final name only if its checksum matches.

    The transfer goes on at the place that promises the earliest end: the time of the missing bytes at the rate measured
    there last, or none before, and ``MOVE_SECONDS`` more for a move, and for each failure since its last progress. So a
    fast place is kept; slow ones are tried for ``TRIAL_SECONDS`` in turn, and the fastest is kept until it turns slow.
    Moves are few: the promise at each return is later than at the one before. A place that fails, or is silent for
    ``TIMEOUT_SECONDS``, is left at once; after ``NUM_TRIES`` failures, or with another file, for good.

    An incomplete file is kept as ``<name>.part`` and resumed by the next try, place and start. If what a server sends
    does not fit it, either may be wrong: the file is downloaded as ``<name>.part.new``, from the start, and the part is
    kept until the checksum of that matches. The checksum decides, so that plain http will do.
    """
    part, new = (path.with_name(f"{path.name}{suffix}") for suffix in (".part", ".part.new"))
    places = _Places([_Place(url, [part, new, new]) for url in dict.fromkeys(urls)])
    place, failed, failures, began = None, None, [], time.monotonic()
    while places.all:
        place = places.choose(place, failed)
        file, num_bytes = place.files[0], _size(place.files[0])
        failure = _try_place(place, places, md5, num_kept=num_bytes if file == part else 0)
        if failure is None:
            file.replace(path)
            part.unlink(missing_ok=True)
            new.unlink(missing_ok=True)
            size, seconds = places.num_received / 1e6, time.monotonic() - began
            rate = f"{size:,.1f} MB in {seconds:,.1f} s, {size / max(seconds, 1e-3):,.2f} MB/s"
            return print(f"{path.name}: {rate}, from {printable(place.url)}", file=sys.stderr)
        if failure == OTHER:
            del place.files[: 1 if num_bytes else 3]  # after its own bytes it has no others
        failed = place if failure not in ("", OTHER) else None
        if not place.files or place.num_failures >= NUM_TRIES:
            places.all.remove(place)
            failures.append(" ".join(f"{place.url}: {failure}".split()))
    raise UserError(
        f"{path.name} could not be downloaded. Tried {'; '.join(failures)}. "
        f"Ways out: `mirror` URL of a copy; put the archive at {path} by hand; or `source` synthetic "
        "(needs no data) or images (of your own).",
        exit_code=1,
    )


def _try_place(place: _Place, places: _Places, md5: str, *, num_kept: int) -> str | None:
    """Complete a file; return None if its checksum matches, else what failed, which is empty if the place was left.

    If the place has another file, the first ``num_kept`` bytes are kept.
    """
    time.sleep(PAUSE_SECONDS * (2**place.num_failures // 2))
    file, began = place.files[0], time.monotonic()
    size = _size(file)
    try:
        _transfer(place, places)
        failure, may_pass = OTHER, False
    except _LeftError:
        return ""
    except (OSError, http.client.HTTPException, ValueError, _OtherFileError) as error:
        failure, may_pass = _explain(error)
    if file.exists() and file_md5(file) == md5:  # also where a wrong length was announced
        return None
    rate = (_size(file) - size) / max(time.monotonic() - began, 1e-3)
    if failure == OTHER or _size(file) > MAX_BYTES:
        _cut(file, num_kept)
    if failure != OTHER:
        place.rate = rate if rate > 0 else place.rate
        # A transfer that got further, and not too slowly, is no failed try.
        place.num_failures = NUM_TRIES if not may_pass else 1 if rate > MIN_RATE else place.num_failures + 1
    return failure


def _explain(error: Exception) -> tuple[str, bool]:
    """Return what went wrong, and whether another try may succeed; an error of this machine's disk is raised."""
    if isinstance(error, _OtherFileError):
        return OTHER, False
    if isinstance(error, HTTPError):
        return f"answered {error.code} {error.reason}", error.code >= 500 or error.code in (408, 429)
    if isinstance(error, URLError):
        return f"cannot be reached ({error.reason})", not isinstance(error.reason, socket.gaierror)  # no such host
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        raise error
    # The others are a malformed URL, too many bytes, or too few of them.
    return f"{error}" or type(error).__name__, isinstance(error, OSError | http.client.HTTPException)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cut(file: Path, num_bytes: int) -> None:
    """Shorten a file; one of no bytes is removed."""
    if num_bytes:
        os.truncate(file, min(num_bytes, _size(file)))
    else:
        file.unlink(missing_ok=True)


def _transfer(place: _Place, places: _Places) -> None:
    """Append the missing bytes to a file; raise if the body ends early, has other bytes than are there, or is slow."""
    url, file = place.url, place.files[0]
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http and https are supported")
    num_have = _size(file)
    start = max(0, num_have - OVERLAP)
    with _open(Request(url, headers={"Range": f"bytes={start}-"} if start else {})) as response:
        if not response.url.startswith(("http://", "https://")):
            raise ValueError("redirects to another protocol")
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        elif not str(response.headers["Content-Range"]).startswith(f"bytes {start}-"):
            raise _OtherFileError
        num_total = start + (response.length or 0)
        bar = tqdm(desc=f"Downloading {url}", total=num_total or None, initial=start, unit="B", unit_scale=True)
        with bar, file.open("r+b" if num_have else "wb") as output:
            output.seek(start)
            for block in _blocks(response, place, places):
                known = output.read(len(block)) if output.tell() < num_have else b""
                if not block.startswith(known):
                    raise _OtherFileError
                output.write(block[len(known) :])
                bar.update(len(block))
                places.num_missing = max(0, (num_total or MAX_BYTES) - output.tell())
                if output.tell() > MAX_BYTES:
                    raise ValueError(f"sent more than {MAX_BYTES:,} bytes")
            if output.tell() < num_total:
                raise OSError(f"the transfer ended at {output.tell():,} of {num_total:,} bytes")


def _open(request: Request) -> Any:
    """Return the response to a request; in a thread, because looking up a host and reading headers has no time-out."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(urlopen(request, timeout=TIMEOUT_SECONDS))
        except BaseException as error:
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError("no answer") from None
    try:
        if isinstance(result, HTTPError) and result.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _OtherFileError from result  # the file is shorter than what is there
        if isinstance(result, BaseException):
            raise result
        return result
    finally:
        del result  # else the error refers to itself, through its traceback, and keeps its socket open


def _blocks(response: Any, place: _Place, places: _Places) -> Iterator[bytes]:
    """Yield what a server sends as it comes, unless it comes too slowly, or might come sooner from another place."""
    began, num_bytes = time.monotonic(), 0
    while block := response.read1(BLOCK):
        yield block
        num_bytes += len(block)
        places.num_received += len(block)
        seconds = time.monotonic() - began
        if seconds >= TRIAL_SECONDS:
            place.rate = num_bytes / seconds
            if place.rate < MIN_RATE:
                raise TimeoutError(f"sent only {place.rate:,.0f} bytes per second")
            if places.choose(place) is not place:
                raise _LeftError
            began, num_bytes = time.monotonic(), 0


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
