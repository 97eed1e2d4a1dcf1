"""A small HTTP server on loopback with faults."""

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
        length: Whether there is a ``Content-Length``.
        requests: The ``Range`` header of each request so far.
    """

    body: bytes
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    cut_at: int = 0
    cuts: int = 0
    cut_points: list[int] = field(default_factory=list)
    stall_seconds: float = 0.0
    length: bool = True
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """Run the server on loopback and yield the URL of the file."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers["Range"] or ""
            behaviour.requests.append(wanted)
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and behaviour.ranges else 0
            if start and start >= len(behaviour.body):
                self.send_error(416)
                return
            part = behaviour.body[start:]
            self.send_response(206 if start else 200)
            if behaviour.length:
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if behaviour.cuts:
                behaviour.cuts -= 1
                cut_at = behaviour.cut_points.pop(0) if behaviour.cut_points else behaviour.cut_at
                part = part[:cut_at]
            half = len(part) // 2
            self.wfile.write(part[:half])
            self.wfile.flush()
            time.sleep(behaviour.stall_seconds)
            self.wfile.write(part[half:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
    finally:
        server.shutdown()
        server.server_close()
