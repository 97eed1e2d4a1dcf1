"""Files of a folder, or of a tar or zip archive that is read without unpacking it."""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from cifar_lit.data.unpacking import DAMAGE, MAX_BYTES, Member, opener, read_tar, read_zip
from cifar_lit.errors import UserError

MAX_VISITS = 10
MAX_FILES = 2_000_000  # in a folder or archive


def walk(root: Path, *, skip: Callable[[str], bool] | None = None) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield name and status of what is below a folder; links are followed: None if to nowhere or in a circle.

    What ``skip`` says of a name is not looked at, nor what is below it.
    """
    top = root.stat()
    folders = [("", frozenset({(top.st_dev, top.st_ino)}))]
    visits: Counter[tuple[int, int]] = Counter()  # of a folder by several links: in a maze of links there is no end
    while folders:
        folder, above = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name, status = folder + entry.name, None
                if skip and skip(name):
                    continue
                try:
                    # Windows gives no inode with a listing.
                    status = os.stat(entry.path) if entry.is_dir() else entry.stat()  # noqa: PTH116 (quicker)
                except FileNotFoundError:
                    pass
                except OSError:
                    if not entry.is_symlink():
                        raise
                if status is not None and stat.S_ISDIR(status.st_mode):
                    place = (status.st_dev, status.st_ino)
                    visits[place] += 1
                    if place in above or visits[place] > MAX_VISITS:
                        status = None
                    else:
                        folders.append((f"{name}/", above | {place}))
                yield name, status


def members(root: Path) -> Iterator[Member]:
    """Yield what a folder or archive holds; each file must be opened before the next is asked for."""
    with reading(root):
        if root.is_dir():
            found = _in_folder(root)
        elif not root.is_file():
            raise UserError(f"{root} is neither a folder nor a file")
        else:
            found = read_zip(root) if zipfile.is_zipfile(root) else read_tar(root)
        for number, member in enumerate(found):
            if number == MAX_FILES:
                raise UserError(f"{root} holds more than {MAX_FILES:,} files: give a folder of the images alone")
            yield member


def read_each(root: Path, names: Collection[str]) -> Iterator[tuple[str, bytes | UserError]]:
    """Yield each of the named files with its content, or with what is wrong with it; the order is that of an archive.

    What is wrong with the archive itself has an empty name. Each message continues the name.
    """
    if root.is_dir():
        yield from ((name, read_file(root / name)) for name in names)
        return
    missing = dict.fromkeys(names)
    try:
        for member in members(root):
            if member.name in names and member.open:
                missing.pop(member.name, None)
                yield member.name, _read(member.size, member.open)
    except UserError as error:
        yield "", UserError(str(error).removeprefix(f"{root} "))
    for name in missing:
        yield name, UserError("is missing; if it was changed meanwhile, start again")


def read_files(root: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each of the named files; one that cannot be read is a ``UserError``."""
    for name, content in read_each(root, names):
        if isinstance(content, UserError):
            raise UserError(f"{root}: {name} {content}" if name else f"{root} {content}")
        yield name, content


def read_file(path: Path) -> bytes | UserError:
    """Return the content of a file, or what is wrong with it; a pipe or device, which may never end, is not opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return UserError("is no regular file")
        return _read(status.st_size, opener(path))
    except OSError as error:
        return UserError(f"cannot be read ({error})")


def _read(size: int, open_file: Callable[[], IO[bytes]]) -> bytes | UserError:
    if size > MAX_BYTES:
        return UserError(f"has {size:,} bytes, more than {MAX_BYTES:,}")
    try:
        with open_file() as file:
            return file.read()
    except (OSError, *DAMAGE) as error:
        return UserError(f"cannot be read ({error})")


def _in_folder(root: Path) -> Iterator[Member]:
    for name, status in walk(root):
        if status is not None and stat.S_ISDIR(status.st_mode):
            yield Member(f"{name}/", 0, None)
        elif status is not None and stat.S_ISREG(status.st_mode):
            yield Member(name, status.st_size, opener(root / name))
        else:
            yield Member(name, 0, None)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn what goes wrong with a folder or archive into a ``UserError`` that names it."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{root} is not a complete .tar, .tar.gz or .zip archive: {error}") from error
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error})") from error


@contextmanager
def writing(folder: Path, name: str, *, mode: int = 0o777) -> Iterator[None]:
    """Create a folder and keep other processes out of it; one that cannot be written is a ``UserError``."""
    try:
        folder.parent.mkdir(mode, parents=True, exist_ok=True)
        folder.mkdir(mode, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, where there are no locks
        raise UserError(f"{name} cannot be written ({error}); give another folder", exit_code=1) from error
