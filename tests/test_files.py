"""Atomic writes: the old content or the new, never a part."""

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from cifar_lit.files import printable, shorten, write_atomic


@pytest.mark.parametrize(
    ("content", "expected"),
    [("ü\n", "ü\n".encode()), (b"\0\1", b"\0\1"), (lambda file: file.write(b"part" * 3), b"partpartpart")],
    ids=["text", "bytes", "function"],
)
def test_what_is_written_is_read(content: object, expected: bytes, tmp_path: Path) -> None:
    for _ in range(2):  # a new file, and one that is replaced
        write_atomic(tmp_path / "file", content)  # type: ignore[arg-type]
        assert (tmp_path / "file").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ValueError("a bug")], ids=repr)
@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_write_leaves_what_was_there(error: BaseException, existed: bool, tmp_path: Path) -> None:
    if existed:
        write_atomic(tmp_path / "file", "old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(type(error)):
        write_atomic(tmp_path / "file", fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"file": "old"} if existed else {})


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def flush(file: int) -> None:
        done.append("flush")
        fsync(file)

    def rename(part: Path, path: Path) -> Path:
        assert part.read_text() == "content"
        done.append("rename")
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomic(tmp_path / "file", "content")
    assert done == ["flush", "rename", "flush"]


def test_a_path_is_shown_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shorten(tmp_path / "a" / "b") == os.path.join("a", "b")
    assert shorten("a/b") == os.path.join("a", "b")

    def fail(path: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", fail)
    assert shorten(Path("D:/a")) == str(Path("D:/a"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("日本 é 😀 C:\\x", "日本 é 😀 C:\\x"),
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("a\nb\tc\x7f", r"a\nb\tc\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("cat\u202egnp.exe\u2066", r"cat\u202egnp.exe\u2066"),
        ("no\udcfftext", r"no\udcfftext"),
    ],
)
def test_a_name_commands_no_terminal(name: str, expected: str) -> None:
    assert printable(name) == expected
