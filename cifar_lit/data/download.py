"""Download of one file from several URLs, with resumed transfers and a checksum."""

import hashlib
import http.client
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from cifar_lit.errors import UserError

BLOCK = 1 << 16
MAX_BYTES = 1 << 30  # so that a server that never ends cannot fill the disk
TIMEOUT_SECONDS = 20.0  # how long a server may be silent
NUM_TRIES = 4  # without progress, per URL
PAUSE_SECONDS = 1.0  # before a second try; doubled for each further one


def download(urls: Sequence[str], path: Path, *, md5: str) -> None:
    """Download a file from the first URL that has it; it gets its final name only if its checksum matches.

    An incomplete file is kept as ``<name>.part`` and resumed by the next try, the next URL and the next start.
    """
    part = path.with_name(path.name + ".part")
    failures = []
    for url in urls:
        failure = _try_url(url, part, md5)
        if failure is None:
            part.replace(path)
            return
        failures.append(f"{url}: {failure}")
    raise UserError(
        f"{path.name} could not be downloaded. Tried {'; '.join(failures)}. "
        f"Ways out: `mirror` URL of a copy; put the archive at {path} by hand; or `source` synthetic "
        "(needs no data) or images (of your own).",
        exit_code=1,
    )


def _try_url(url: str, part: Path, md5: str) -> str | None:
    """Complete ``part`` from one URL; return None if its checksum matches, else the last failure."""
    failure = ""
    num_failures = 0
    furthest = _size(part)
    while num_failures < NUM_TRIES:
        time.sleep(PAUSE_SECONDS * (2**num_failures // 2))
        num_before = _size(part)
        try:
            _transfer(url, part)
            if file_md5(part) == md5:
                return None
            failure = "sent another file (checksum mismatch)"
            part.unlink()
            if num_before == 0:
                return failure  # else the earlier part may be damaged: once more from the start
        except HTTPError as error:
            failure = f"answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                return failure
        except URLError as error:
            failure = f"cannot be reached ({error.reason})"
            if isinstance(error.reason, socket.gaierror):
                return failure  # no such host
        except (OSError, http.client.HTTPException) as error:
            failure = f"{error}" or type(error).__name__
        except ValueError as error:  # a malformed URL, or too many bytes
            return f"{error}"
        # A transfer that got further than any before it is no failed try.
        num_failures = 1 if _size(part) > furthest else num_failures + 1
        furthest = max(furthest, _size(part))
    return failure


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path) -> None:
    """Append the missing bytes to ``part``; raise if the body ends early."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http and https are supported")
    num_have = _size(part)
    request = Request(url, headers={"Range": f"bytes={num_have}-"} if num_have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing: the checksum decides
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            num_have = 0
        num_total = num_have + int(response.headers["Content-Length"] or 0)
        bar = tqdm(desc=f"Downloading {url}", total=num_total or None, initial=num_have, unit="B", unit_scale=True)
        with bar, part.open("ab" if num_have else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
                if file.tell() > MAX_BYTES:
                    part.unlink()
                    raise ValueError(f"sent more than {MAX_BYTES:,} bytes")
            if file.tell() < num_total:
                raise OSError(f"the transfer ended at {file.tell():,} of {num_total:,} bytes")


def file_md5(path: Path) -> str:
    """Return the MD5 of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
