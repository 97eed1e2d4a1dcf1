"""The folder of an export: which one, kept from other exports, and changed once all files are written and checked."""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from cifar_lit.errors import UserError
from cifar_lit.evaluation.card import FILES, NEW_CARD, OLD_CARD, card_fingerprint, set_aside
from cifar_lit.files import printable, shorten
from cifar_lit.run import Run
from cifar_lit.trust import check_links

LEFT_OVER = re.compile(r"\.lock|\.export\w{8}|\.(README(\.new)?\.md|config\.json|model(\.\w+)+)\.\w+\.part")
"""Names of what an export writes on its way."""


def folder_of(run: Run, output: str | None) -> Path:
    """Return the folder that is asked for, or else ``export`` in that of the run, from where nothing leads elsewhere.

    A checkpoint without a run has it beside itself.
    """
    if output:
        return Path(output)
    folder = (run.folder or run.file.parent) / "export"
    if not run.trust:
        if folder.is_symlink():
            way_out = "nothing is written in there; give another folder with `output`, or `trust` if it is yours"
            raise UserError(f"{folder} is a link to {folder.readlink()}: {way_out}")
        check_links(folder)
    return folder


@contextlib.contextmanager
def writing(folder: Path, run: Run) -> Iterator[None]:
    """Create the folder, and keep other exports out of it; it may hold an export, or what a killed one left behind."""
    if folder.resolve() == run.file.parent.resolve():
        raise UserError(f"`output` is {folder}, the folder of the model itself: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`output` is {folder}: cannot be created ({error.strerror})") from error
    if card_fingerprint(folder) is None and not all(LEFT_OVER.fullmatch(path.name) for path in folder.iterdir()):
        raise UserError(f"`output` is {folder}, which holds other files than an export: give another folder")
    if (folder / ".lock").is_symlink():
        raise UserError(f"`output` is {folder}, whose .lock is a link: remove it, or give another folder")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire()
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise UserError(f"`output` is {folder}: cannot be written ({error.strerror}); give another folder") from error
    try:
        for left_over in (path for path in folder.iterdir() if LEFT_OVER.fullmatch(path.name)):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over)
            elif left_over.name != ".lock":
                left_over.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file; the next export takes it
            Path(lock.lock_file).unlink()
        lock.release()


def publish(place: Path, folder: Path, fingerprint: str, write_card: Callable[[], str]) -> None:
    """Move the files of an export from a place to its folder; what is there of another model is removed.

    ``write_card`` writes the card of the folder as it is, and returns its name.
    """
    if card_fingerprint(folder) not in (None, fingerprint):
        print(f"files of another model are removed from {printable(shorten(folder))}")
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    if set_aside(folder):
        print(f"README.md, which an earlier version wrote, is {OLD_CARD} now")
    write_card()  # first: it marks the folder as an export of this model
    for part in place.iterdir():
        part.replace(folder / part.name)
    if write_card() == NEW_CARD:
        print(f"README.md was edited, and stays as it is: the card of these files is {NEW_CARD}")
