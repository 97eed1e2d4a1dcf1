"""A small HTTP server on loopback with faults."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """The behaviour of the server.

    Attributes:
        body: The content of the file.
        ranges: Whether it supports range requests.
        statuses: Error codes of the first requests; later ones succeed.
        cut_at: The connection is closed after this many bytes of a response, ``cuts`` times.
        cuts: How often the connection is closed early.
        cut_points: A value for each time, instead of ``cut_at``.
        stall_seconds: A pause in the middle of each response.
        byte_seconds: A pause after each byte.
        slow_rate: Bytes per second, in steps of 1000; 0 for as fast as it can.
        slow_at: From this byte of the file on it has that rate.
        length: Whether there is a ``Content-Length``.
        announced: The length that it announces; None for the right one.
        range_shift: How far from the requested range the ``Content-Range`` begins.
        redirect: The URL that it redirects to; empty for none.
        requests: The ``Range`` header of each request so far.
        num_sent: The bytes that were sent slowly so far.
    """

    body: bytes
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    cut_at: int = 0
    cuts: int = 0
    cut_points: list[int] = field(default_factory=list)
    stall_seconds: float = 0.0
    byte_seconds: float = 0.0
    slow_rate: float = 0.0
    slow_at: int = 0
    length: bool = True
    announced: str | int | None = None
    range_shift: int = 0
    redirect: str = ""
    requests: list[str] = field(default_factory=list)
    num_sent: int = 0


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has left
            super().handle()

    def do_GET(self) -> None:
        wanted = self.headers["Range"] or ""
        self.behaviour.requests.append(wanted)
        if self.behaviour.redirect or self.behaviour.statuses:
            self.send_response(302 if self.behaviour.redirect else self.behaviour.statuses.pop(0))
            self.send_header("Location", self.behaviour.redirect)
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) * self.behaviour.ranges
        if start and start >= len(self.behaviour.body):
            self.send_error(416)
            return
        part = self.behaviour.body[start:]
        self.send_response(206 if start else 200)
        self.send_lengths(part, start)
        for byte in part if self.behaviour.byte_seconds else b"":
            self.wfile.write(bytes([byte]))
            time.sleep(self.behaviour.byte_seconds)
        if self.behaviour.slow_rate:
            part = self.send_slowly(part, start)
        part = self.cut(part)
        half = len(part) // 2
        self.wfile.write(part[:half])
        self.wfile.flush()
        time.sleep(self.behaviour.stall_seconds)
        self.wfile.write(part[half:])

    def send_slowly(self, part: bytes, start: int) -> bytes:
        fast = max(0, self.behaviour.slow_at - start)
        self.wfile.write(part[:fast])
        for at in range(fast, len(part), 1000):
            self.wfile.write(part[at : at + 1000])
            self.behaviour.num_sent += 1000
            time.sleep(1000 / self.behaviour.slow_rate)
        return b""

    def cut(self, part: bytes) -> bytes:
        if not self.behaviour.cuts:
            return part
        self.behaviour.cuts -= 1
        return part[: self.behaviour.cut_points.pop(0) if self.behaviour.cut_points else self.behaviour.cut_at]

    def send_lengths(self, part: bytes, start: int) -> None:
        if start:
            first, last = start + self.behaviour.range_shift, len(self.behaviour.body) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.behaviour.body)}")
        if self.behaviour.length:
            self.send_header("Content-Length", str(self.behaviour.announced or len(part)))
        self.end_headers()


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Run the server on loopback and yield the URL of the file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"behaviour": behaviour}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
    finally:
        server.shutdown()
        server.server_close()
