"""A small HTTP server on loopback that behaves as badly as asked."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """How the server answers.

    Attributes:
        body: What it has to give.
        ranges: Whether it answers a request for a part with that part.
        statuses: Error codes for the first requests; later ones succeed.
        cut_at: It breaks off after this many bytes of a request's body, as long as there are cuts left.
        cuts: How often it breaks off.
        cut_points: Where it breaks off each time, in place of ``cut_at``.
        stall_seconds: How long it is silent in the middle of a body.
        length: Whether it says how long the body is.
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
    """Serve on loopback; gives the URL."""

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
