"""Download of one file from several URLs, with resumed transfers and a checksum."""

import errno
import hashlib
import http.client
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from cifar_lit.errors import UserError

BLOCK = 1 << 16
OVERLAP = 1 << 14  # bytes that are compared before others are appended to them
MAX_BYTES = 1 << 30  # so that a server that never ends cannot fill the disk
TIMEOUT_SECONDS = 20.0  # how long a server may be silent
MIN_RATE = 1000.0  # bytes per second, over as many seconds: a slower server is left
NUM_TRIES = 4  # without progress, per URL
PAUSE_SECONDS = 1.0  # before a second try; doubled for each further one
OTHER = "sent another file (checksum mismatch)"


class _OtherFileError(Exception):
    """The server has other bytes than those that are there."""


class _SlowError(Exception):
    """The server sends too slowly."""


def download(urls: Sequence[str], path: Path, *, md5: str) -> None:
    """Download a file from the first URL that has it; it gets its final name only if its checksum matches.

    An incomplete file is kept as ``<name>.part`` and resumed by the next try, the next URL and the next start. If what
    a server sends does not fit it, either may be wrong: the file is downloaded as ``<name>.part.new``, from the start,
    and the part is kept until the checksum of that matches. The checksum decides, so that plain http will do.
    """
    part, new = (path.with_name(f"{path.name}{suffix}") for suffix in (".part", ".part.new"))
    failures = []
    for url in urls:
        for file in (part, new, new):
            is_empty = _size(file) == 0
            failure = _try_url(url, file, md5, num_kept=_size(file) if file == part else 0)
            if failure is None:
                file.replace(path)
                part.unlink(missing_ok=True)
                new.unlink(missing_ok=True)
                return
            if failure != OTHER or is_empty:
                break
        failures.append(" ".join(f"{url}: {failure}".split()))
    raise UserError(
        f"{path.name} could not be downloaded. Tried {'; '.join(failures)}. "
        f"Ways out: `mirror` URL of a copy; put the archive at {path} by hand; or `source` synthetic "
        "(needs no data) or images (of your own).",
        exit_code=1,
    )


def _try_url(url: str, file: Path, md5: str, *, num_kept: int) -> str | None:
    """Complete a file from one URL; return None if its checksum matches, else the last failure.

    If the URL has another file, the first ``num_kept`` bytes are kept.
    """
    failure, num_failures, furthest = "", 0, _size(file)
    while num_failures < NUM_TRIES:
        time.sleep(PAUSE_SECONDS * (2**num_failures // 2))
        began = time.monotonic()
        try:
            _transfer(url, file)
            failure, may_pass = OTHER, False
        except (OSError, http.client.HTTPException, ValueError, _OtherFileError, _SlowError) as error:
            failure, may_pass = _explain(error)
        if file.exists() and file_md5(file) == md5:  # also where a wrong length was announced
            return None
        if failure == OTHER or _size(file) > MAX_BYTES:
            _cut(file, num_kept)
        if not may_pass:
            return failure
        # A transfer that got further than any before it, and not too slowly, is no failed try.
        gained = _size(file) - furthest
        num_failures = 1 if gained > MIN_RATE * (time.monotonic() - began) else num_failures + 1
        furthest = max(furthest, _size(file))
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


def _transfer(url: str, file: Path) -> None:
    """Append the missing bytes to a file; raise if the body ends early, or has other bytes than are there."""
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
            for block in _blocks(response):
                known = output.read(len(block)) if output.tell() < num_have else b""
                if not block.startswith(known):
                    raise _OtherFileError
                output.write(block[len(known) :])
                bar.update(len(block))
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
        result = results.get(timeout=3 * TIMEOUT_SECONDS)
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


def _blocks(response: Any) -> Iterator[bytes]:
    """Yield what a server sends as it comes, unless it comes too slowly."""
    began, num_bytes = time.monotonic(), 0
    while block := response.read1(BLOCK):
        yield block
        num_bytes += len(block)
        seconds = time.monotonic() - began
        if seconds >= TIMEOUT_SECONDS:
            if num_bytes < MIN_RATE * seconds:
                raise _SlowError(f"sent only {num_bytes / seconds:,.0f} bytes per second")
            began, num_bytes = time.monotonic(), 0


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
