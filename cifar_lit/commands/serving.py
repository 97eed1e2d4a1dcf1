"""What the demo's server lets in, and what it leaves behind: nothing."""

import contextlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PREFIX = "cifar_lit_demo_"
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:@/?#]+))(?::\d+)?")
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class OwnHosts:
    """ASGI middleware that refuses requests under a foreign name, or from a page of another origin.

    A page elsewhere whose name is made to lead to this machine (DNS rebinding) could read the predictions. Besides the
    ``names``, the address of this machine at which the request arrived is let in.
    """

    def __init__(self, app: Any, names: set[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.is_own(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"This page is not served under that name.\n"})

    def is_own(self, scope: dict[str, Any]) -> bool:
        hosts, origins = (
            [value.decode("latin-1").lower() for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin")
        )
        address = str((scope.get("server") or ("",))[0]).removeprefix("::ffff:")  # of IPv4 in IPv6
        found = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        is_known = found is not None and (found[1] or found[2]) in {*self.names, address}
        return is_known and all(origin in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins)


def own_names(host: str) -> set[str]:
    """Return the names under which a page is served that listens on ``host``."""
    machine = socket.gethostname().lower()
    return {*LOOPBACK, host.lower()} | (set() if host in LOOPBACK else {machine, f"{machine.partition('.')[0]}.local"})


@contextlib.contextmanager
def uploads_folder() -> Iterator[Path]:
    """Make a private folder for uploads, and remove it at the end; and those of demos that were killed."""
    base = Path(tempfile.gettempdir())
    for left_over in base.glob(f"{PREFIX}*.lock"):
        _remove(left_over)
    folder = base / f"{PREFIX}{uuid4().hex}"
    with FileLock(f"{folder}.lock", mode=0o600):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # Windows keeps an open file; the next demo removes it
                Path(f"{folder}.lock").unlink()


def _remove(lock: Path) -> None:
    """Remove the folder of a lock that no process holds, if this user made it, and the lock."""
    with contextlib.suppress(OSError, Timeout):
        found = lock.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == getattr(os, "getuid", lambda: found.st_uid)():
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
