"""One file from the first of several places that gives it whole; a broken transfer goes on where it stopped."""

import hashlib
import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

BLOCK = 1 << 16
MAX_BYTES = 1 << 30
"""No file that we download is larger: a server that never ends cannot fill the disk."""


def download(
    urls: Sequence[str],
    path: Path,
    *,
    md5: str,
    timeout_seconds: float = 20.0,
    num_tries: int = 4,
    pause_seconds: float = 1.0,
) -> None:
    """Download a file and give it its final name once its sum is right.

    What has arrived lies beside it, under its name and ``.part``, and is taken up by the next try, the next place and
    the next start. A transfer that got further than before does not count as a try.

    Args:
        urls: The places, in the order in which they are tried; ``http`` or ``https``.
        path: The final name, in a folder that exists.
        md5: The sum that the file must have.
        timeout_seconds: How long a server may be silent.
        num_tries: Tries without progress, for each place.
        pause_seconds: How long to wait before a second try; doubles with each further one.

    Raises:
        RuntimeError: If no place gave the file; the message says what each one answered and what can be done.
    """
    part = path.with_name(path.name + ".part")
    answers = []
    for url in urls:
        answer = _try_place(url, part, md5, timeout_seconds, num_tries, pause_seconds)
        if answer is None:
            part.replace(path)
            return
        answers.append(f"{url}: {answer}")
    raise RuntimeError(
        f"{path.name} could not be downloaded. Tried " + "; ".join(answers) + ". "
        f"Ways out: --data.mirror URL of a copy; put the archive at {path} by hand; or --data.source synthetic "
        "(needs no data) or images (pictures of your own)."
    )


def _try_place(
    url: str, part: Path, md5: str, timeout_seconds: float, num_tries: int, pause_seconds: float
) -> str | None:
    """Complete ``part`` from one place; return None when its sum is right, else what the place answered last."""
    answer = ""
    num_failures = 0
    furthest = _size(part)
    while num_failures < num_tries:
        if num_failures:
            time.sleep(pause_seconds * 2 ** (num_failures - 1))
        num_before = _size(part)
        try:
            _transfer(url, part, timeout_seconds)
            if file_md5(part) == md5:
                return None
            answer = "sent another file (its md5 sum is wrong)"
            part.unlink()
            if num_before == 0:
                return answer  # else the earlier part may be to blame: once more from the start
        except urllib.error.URLError as error:
            answer = _describe(error)
            if _is_final(error):
                return answer
        except (OSError, http.client.HTTPException) as error:
            answer = f"{error}" or type(error).__name__
        except ValueError as error:
            return f"{error}"
        num_failures = 1 if _size(part) > furthest else num_failures + 1
        furthest = max(furthest, _size(part))
    return answer


def _describe(error: urllib.error.URLError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code} {error.reason}"
    return f"cannot be reached ({error.reason})"


def _is_final(error: urllib.error.URLError) -> bool:
    """Tell whether asking again at once would change nothing: the file is not there, or the name leads nowhere."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)
    return isinstance(error.reason, socket.gaierror)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, timeout_seconds: float) -> None:
    """Append to ``part`` what is still missing; raise if the body ends early."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http and https are supported")
    num_have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_have}-"} if num_have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return  # nothing is missing: the sum decides
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        num_have = num_have if resumed else 0
        num_total = num_have + int(response.headers["Content-Length"] or 0)
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=f"Downloading {url}", total=num_total or None, initial=num_have, unit="B", unit_scale=True
            ) as bar,
        ):
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
                if file.tell() > MAX_BYTES:
                    part.unlink()
                    raise ValueError(f"sent more than {MAX_BYTES:,} bytes")
            if file.tell() < num_total:
                raise OSError(f"the transfer broke off at {file.tell():,} of {num_total:,} bytes")


def file_md5(path: Path) -> str:
    """Compute the md5 sum of a file.

    Args:
        path: The file.

    Returns:
        32 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
