"""Members of a tar or zip archive, read without unpacking it, up to limits that are checked before anything is read."""

import bz2
import functools
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from cifar_lit.errors import UserError

MAX_BYTES = 100_000_000  # the largest file that is read
MAX_RATIO = 100  # an archive may unpack to as many times its own size, or to MAX_BYTES
MAX_NAME = 1 << 20  # the longest name in a tar archive: tarfile reads it into memory
BLOCK = 4096  # what a member of a tar archive counts for at least
COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
LONG_NAMES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
ERRORS = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error)
DAMAGE = (*ERRORS, EOFError, LookupError, ValueError, RuntimeError)  # RuntimeError is zipfile's for an encrypted file


class Member(NamedTuple):
    """A file or folder, whose name ends with a slash; ``open`` is None for a folder, and for links, pipes, devices."""

    name: str
    size: int
    open: Callable[[], IO[bytes]] | None


def opener(path: Path) -> Callable[[], IO[bytes]]:
    """Return a function that opens a file."""
    return lambda: path.open("rb")


def read_zip(root: Path) -> Iterator[Member]:
    """Yield the members of a zip archive."""
    with zipfile.ZipFile(root) as archive:
        infos = {info.filename: info for info in archive.infolist()}  # of a name that occurs twice the later file
        _check_size(root, _limit(root), sum(info.file_size for info in infos.values()))
        for name, info in infos.items():
            # zipfile reads no more than file_size, whatever comes out.
            yield Member(name, info.file_size, None if info.is_dir() else functools.partial(archive.open, info))


class _Header(tarfile.TarInfo):
    """A header of a tar archive. Damage is an error: ``tarfile`` takes a damaged header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise  # the block of zeros at the end
            raise tarfile.ReadError(f"{error}") from error
        if header.type in LONG_NAMES and header.size > MAX_NAME:
            raise tarfile.ReadError(f"a name of {header.size:,} bytes")
        return header


class _Unpacked:
    """The bytes that come out of a compressed file, up to the limit."""

    def __init__(self, root: Path, file: IO[bytes]) -> None:
        self.root, self.file, self.limit, self.num_bytes = root, file, _limit(root), 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.num_bytes += len(data)
        _check_size(self.root, self.limit, self.num_bytes)
        return data


def read_tar(root: Path) -> Iterator[Member]:
    """Yield the members of a tar archive; each must be opened before the next is asked for."""
    with root.open("rb") as file:
        magic = file.read(6)
    unpack = next((unpack for start, unpack in COMPRESSIONS.items() if magic.startswith(start)), None)
    with (unpack or open)(root, "rb") as file:
        source: Any = _Unpacked(root, file) if unpack else file
        with tarfile.open(fileobj=source, mode="r|" if unpack else "r:", tarinfo=_Header) as stream:
            limit = _limit(root)
            for number, header in enumerate(stream, start=1):
                if header.size < 0:
                    raise tarfile.ReadError(f"{header.name} has {header.size} bytes")
                _check_size(root, limit, max(header.offset_data + header.size, number * BLOCK))
                data = stream.extractfile(header) if header.isfile() else None
                open_file = functools.partial(_in_memory, data) if data else None
                yield Member(header.name + "/" * header.isdir(), header.size, open_file)
            _check_end(stream)


def _check_end(stream: tarfile.TarFile) -> None:
    """Read on to the end, where a compressed file has its checksum, and where a second archive may follow."""
    num_zeros = 0
    while rest := cast(Any, stream.fileobj).read(1 << 20):
        num_zeros += len(rest)
        if num_zeros > MAX_BYTES or rest.strip(b"\0"):
            raise tarfile.ReadError("it goes on after its end")


def _in_memory(file: IO[bytes]) -> IO[bytes]:
    return io.BytesIO(file.read())


def _limit(root: Path) -> int:
    return max(MAX_BYTES, MAX_RATIO * root.stat().st_size)


def _check_size(root: Path, limit: int, num_bytes: int) -> None:
    if num_bytes > limit:
        way_out = "unpack it yourself and give the folder of the images"
        raise UserError(f"{root} unpacks to {num_bytes:,} bytes, more than {limit:,}: {way_out}")
