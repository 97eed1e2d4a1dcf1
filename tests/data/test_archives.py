"""Folders and archives from strangers: they end in one line or are read, they never hang."""

import gzip
import inspect
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from cifar_lit.data import archives, unpacking
from cifar_lit.data.archives import members, read_each, read_file, read_files
from cifar_lit.errors import UserError
from tests.helpers.images import put, tiny_files, write_files, write_tar

FILES = {"a.png": b"aa", "b/c.png": b"c", "d.txt": b""}


def header(name: str = "x.bin", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def with_header(block: bytes) -> Callable[[bytes], bytes]:
    """Add headers to the archive of FILES, at its end."""
    return lambda content: content[:2560] + block + bytes(1024)


def pax_size(size: int) -> bytes:
    record = f"size={size}\n"
    record = f"{len(record) + 3} {record}"
    return header(size=len(record), kind=tarfile.XHDTYPE) + record.encode().ljust(512, b"\0") + header()


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (with_header(header(size=2**60)), r"unpacks to 1,152,921,504,606,[\d,]+ bytes, more than 1,000,000: unpack it"),
        (with_header(header(size=-512)), "x.bin has -512 bytes"),
        (with_header(pax_size(-5120)), "x.bin has -5120 bytes"),
        (with_header(header(size=2**33, kind=tarfile.XHDTYPE)), "a name of 8,589,934,592 bytes"),
        (with_header((header(size=9, kind=b"L") + b"n".ljust(512, b"\0")) * 2000), "recursion"),
        (lambda content: content * 2, "it goes on after its end"),
        (lambda content: content[:1030] + b"x" + content[1031:], "is not a complete .*: bad checksum"),
        (lambda content: content[:2560], "is not a complete .*: empty header"),
        (lambda content: content[:1700], "is not a complete"),
    ],
    ids=["huge", "negative", "pax", "long name", "recursion", "twice", "bad header", "cut between", "cut within"],
)
def test_a_tar_archive_that_lies_or_is_damaged(
    packed: bool, change: Callable[[bytes], bytes], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 1_000_000)
    path = write_tar(tmp_path / "a.tar", FILES)
    content = change(path.read_bytes())
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=f"a.tar .*{expected}"):
        list(members(path))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_what_unpacks_to_too_much_is_refused_unread(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 1_000_000)
    path = put(kind, tmp_path, FILES)
    if kind == "zip":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros.bin", bytes(1_200_000))
        monkeypatch.setattr(zipfile.ZipFile, "open", None)
    else:
        path = write_tar(tmp_path / "b.tar.gz", FILES | {"zeros.bin": bytes(1_200_000)})
    with pytest.raises(UserError, match=r"unpacks to 1,2\d\d,\d+ bytes, more than 1,000,000: unpack it yourself"):
        list(members(path))


def test_a_damaged_checksum_at_the_end_of_a_compressed_archive_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", FILES)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(UserError, match="CRC check failed"):
        list(members(path))


def test_a_damaged_member_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    path = put("zip", tmp_path, FILES)
    path.write_bytes(path.read_bytes().replace(b"aa", b"ab", 1))
    found = dict(read_each(path, ["a.png", "b/c.png", "gone.png"]))
    assert found["b/c.png"] == b"c"
    assert "Bad CRC-32" in str(found["a.png"])
    assert "is missing" in str(found["gone.png"])
    with pytest.raises(UserError, match=r"pictures\.zip: a\.png cannot be read \(Bad CRC-32"):
        list(read_files(path, ["a.png"]))


def test_circles_and_mazes_of_links_pipes_and_links_to_nothing(tmp_path: Path) -> None:
    root = write_files(tmp_path / "a", FILES)
    (root / "b" / "back").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "nothing").symlink_to("nowhere")
    (root / "again").symlink_to("b")
    os.mkfifo(root / "pipe.png")
    found = {member.name: member.open is not None for member in members(root)}
    assert found == {
        **dict.fromkeys(("a.png", "b/c.png", "d.txt", "again/c.png"), True),
        **dict.fromkeys(("b/", "again/", "b/back", "again/back", "self", "nothing", "pipe.png"), False),
    }
    names = "abcdefghij"
    for one in names:
        (tmp_path / "maze" / one).mkdir(parents=True)
        for other in names.replace(one, ""):
            (tmp_path / "maze" / one / other).symlink_to(f"../{other}")
    assert len(list(members(tmp_path / "maze"))) < 2000
    assert "is no regular file" in str(read_file(root / "pipe.png"))
    with pytest.raises(UserError, match="is neither a folder nor a file"):
        list(members(root / "pipe.png"))


def test_deep_folders(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 200)).mkdir(parents=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert len(list(members(tmp_path))) == 200
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_too_many_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 5)
    with pytest.raises(UserError, match="holds more than 5 files"):
        list(members(put(kind, tmp_path, tiny_files(2, 1))))


def test_many_empty_members_count_as_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"unpacks to 1,0\d\d,\d+ bytes"):
        list(members(write_tar(tmp_path / "a.tar.gz", {f"{number}": b"" for number in range(300)})))


def test_a_file_of_a_terabyte_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 1_000_000)
    for name in ("a.png", "a.tar"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    assert "has 1,099,511,627,776 bytes, more than 100,000,000" in str(read_file(tmp_path / "a.png"))
    with pytest.raises(UserError, match="it goes on after its end"):
        list(members(tmp_path / "a.tar"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_files(tmp_path / "a", FILES)
    scan = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"a cannot be read \(.*Permission denied"):
        list(members(root))


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", none)
    with pytest.raises(UserError, match=r"`root` x cannot be written \(FileSystem does not .*\); give another folder"):  # noqa: SIM117
        with archives.writing(tmp_path, "`root` x"):
            pass


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:  # noqa: PTH123 (a Path has no bytes)
        file.write(b"x")
    (member,) = members(tmp_path)
    assert member.open is not None
    with member.open() as file:
        assert file.read() == b"x"
