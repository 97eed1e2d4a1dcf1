"""Files of a folder, or of a tar or zip archive that is read without unpacking it."""

import functools
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from cifar_lit.errors import UserError

MAX_BYTES = 100_000_000  # the largest file that is read from an archive


def walk(root: Path) -> Iterator[Path]:
    """Yield the files and folders below a folder, sorted; links to folders are followed."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(folders + files))


def list_files(root: Path) -> list[str]:
    """Return the names of the files in a folder or archive, and those of its folders with a slash at the end."""
    if root.is_dir():
        return [path.relative_to(root).as_posix() + "/" * path.is_dir() for path in walk(root)]
    with reading(root):
        return [name for name, _, _ in _members(root)]


def read_files(root: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each of the named files, those of an archive in the order in which they are stored."""
    with reading(root):
        if root.is_dir():
            yield from ((name, (root / name).read_bytes()) for name in names)
            return
        missing = set(names)
        for name, num_bytes, read in _members(root):
            if name in names:
                if num_bytes > MAX_BYTES:
                    raise UserError(f"{root}: {name} has {num_bytes:,} bytes, more than {MAX_BYTES:,}; remove it")
                missing.discard(name)
                yield name, read()
        if missing:
            raise UserError(f"{root}: {min(missing)} is missing; if it was changed meanwhile, start again")


def _members(root: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Yield the name and size of each file and folder in an archive, and what reads it; links are left out."""
    if zipfile.is_zipfile(root):
        with zipfile.ZipFile(root) as archive:
            for name in dict.fromkeys(archive.namelist()):  # a name that occurs twice is that of the later file
                yield name, archive.getinfo(name).file_size, functools.partial(archive.read, name)
        return
    with tarfile.open(root, "r|*") as stream:
        for member in stream:
            if member.isfile() or member.isdir():
                file = stream.extractfile(member)
                yield member.name + "/" * member.isdir(), member.size, file.read if file else bytes


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn what goes wrong with a folder or archive into a ``UserError`` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error})") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError is what zipfile raises for an encrypted file.
        raise UserError(f"{root} is not a complete .tar, .tar.gz or .zip archive: {error}") from error


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Create a folder and keep other processes out of it; one that cannot be written is a ``UserError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as error:
        raise UserError(f"{name} cannot be written ({error}); give another folder", exit_code=1) from error
