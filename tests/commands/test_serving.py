"""The demo's server: whom it answers, and what it leaves behind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cifar_lit.commands.serving import OwnHosts, own_names, uploads_folder


def status(scope: dict[str, Any], host: str = "127.0.0.1") -> int:
    """Return the status of the answer to a request; 200 is that of the page behind, 1008 the end of a WebSocket."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"status": 200})

    asyncio.run(OwnHosts(page, own_names(host))(scope, lambda: None, send))  # type: ignore[arg-type, return-value]
    code: int = sent[0].get("status") or sent[0]["code"]
    return code


@pytest.mark.parametrize(
    ("listens", "headers", "expected"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:7860"}, 200),
        ("127.0.0.1", {"host": "LOCALHOST"}, 200),
        ("::1", {"host": "[::1]:7860"}, 200),
        ("127.0.0.1", {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ("127.0.0.1", {"host": "elsewhere.example"}, 403),
        ("127.0.0.1", {"host": "192.0.2.9"}, 403),
        ("127.0.0.1", {"host": "machine"}, 403),
        ("0.0.0.0", {"host": "192.0.2.7:7860"}, 200),  # where the request arrived
        ("0.0.0.0", {"host": "Machine:7860"}, 200),
        ("0.0.0.0", {"host": "machine.local"}, 200),
        ("0.0.0.0", {"host": "elsewhere.example"}, 403),
        ("page.example", {"host": "page.example"}, 200),
        ("127.0.0.1", {"host": "localhost:7860", "origin": "http://localhost:7861"}, 403),
        ("127.0.0.1", {"host": "localhost", "origin": "null"}, 403),
        ("127.0.0.1", {"host": "elsewhere@localhost"}, 403),
        ("127.0.0.1", {"host": "localhost:7860.elsewhere"}, 403),
        ("127.0.0.1", {"host": "["}, 403),
        ("127.0.0.1", {"host": ""}, 403),
        ("127.0.0.1", {}, 403),
    ],
)
def test_only_pages_of_its_own_are_answered(
    listens: str, headers: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    server = ("::ffff:192.0.2.7" if listens == "0.0.0.0" else listens, 7860)
    assert status({"type": "http", "headers": encoded, "server": server}, listens) == expected
    websocket = {"type": "websocket", "headers": encoded, "server": server}
    assert status(websocket, listens) == (200 if expected == 200 else 1008)


def test_uploads_are_private_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    base = tmp_path / "temporary"
    base.mkdir()
    mine = tmp_path / "mine.txt"
    mine.write_text("stays")
    (base / "cifar_lit_demo_killed").mkdir()
    (base / "cifar_lit_demo_killed/upload.png").write_text("left by a demo that was killed")
    (base / "cifar_lit_demo_killed.lock").touch()
    (base / "cifar_lit_demo_link.lock").symlink_to(mine)  # of somebody else
    (base / "cifar_lit_demo_runs").mkdir()
    with FileLock(base / "cifar_lit_demo_runs.lock"):
        with uploads_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert folder.parent == base
            (folder / "upload.png").touch()
            left = {path.name for path in base.iterdir()} - {folder.name, f"{folder.name}.lock"}
            assert left == {"cifar_lit_demo_link.lock", "cifar_lit_demo_runs", "cifar_lit_demo_runs.lock"}
        assert {path.name for path in base.iterdir()} == left
    assert mine.read_text() == "stays"
