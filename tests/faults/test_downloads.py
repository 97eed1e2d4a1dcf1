"""Downloads, extraction and the cache: what fails is explained, and the next start repairs it."""

import contextlib
import functools
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.data.cifar10 import Archive
from tests.helpers.cifar10 import pack, small_files
from tests.helpers.faults import BASE, EPOCHS, check
from tests.helpers.processes import Run, run, wait_for
from tests.helpers.server import Behaviour, serving

SMALL = ["--data.source", "cifar10", "--data.root", "data", "--data.val_size", "0", "--data.batch_size", "4"]
WHOLE, ARCHIVE = pack(small_files())


def take_archive(archive: Archive) -> None:
    """Let the small archive take the place of the official one."""
    from cifar_lit.data import cifar10, download

    cifar10.ARCHIVES["cifar10"] = archive
    download.PAUSE_SECONDS = 0.0
    download.BLOCK = 1000  # of about 70,000


SMALL_ARCHIVE = functools.partial(take_archive, ARCHIVE)  # packed once: the checksum depends on the time


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        pytest.param(lambda whole: Behaviour(whole, statuses=[404] * 9), "answered 404", marks=pytest.mark.slow),
        pytest.param(lambda whole: Behaviour(whole, statuses=[503] * 99), "answered 503", marks=pytest.mark.slow),
        (lambda whole: Behaviour(whole, cut_at=1000, cuts=99, ranges=False), "the transfer ended at 1,000 of"),
        (lambda whole: Behaviour(whole[:-100] + bytes(100)), "sent another file (checksum mismatch)"),
    ],
    ids=["not there", "always busy", "short", "checksum mismatch"],
)
def test_a_download_that_fails(behaviour: Callable[[bytes], Behaviour], says: str, folder: Path) -> None:
    with serving(behaviour(WHOLE)) as url:
        done = run(["fit", *SMALL, "--data.mirror", url], inside=SMALL_ARCHIVE)
        check(done, 1, says)
        assert "--data.source synthetic" in done.err
    with serving(Behaviour(WHOLE)) as url:  # the next start
        check(run(["fit", *SMALL, *EPOCHS, "--data.mirror", url], inside=SMALL_ARCHIVE), 0, "")


def test_no_network_at_all(folder: Path) -> None:
    url = "http://127.0.0.1:9/archive.tar.gz"  # nobody listens
    done = run(["fit", *SMALL, "--data.mirror", url], inside=SMALL_ARCHIVE)
    check(done, 1, "cannot be reached")


def test_two_that_start_at_once_on_an_empty_folder_download_once(folder: Path) -> None:
    behaviour = Behaviour(WHOLE, stall_seconds=0.5)
    with serving(behaviour) as url:
        runs = []
        for number in range(2):
            place = folder / f"process{number}"
            place.mkdir()
            with contextlib.chdir(place):
                options = ["--data.root", str(folder / "data"), "--data.mirror", url]
                runs.append(Run(["fit", *SMALL, *EPOCHS, *options], inside=SMALL_ARCHIVE))
        for started in runs:
            check(started.wait(), 0, "")
    assert len(behaviour.requests) == 1


def kill_in(module: str, name: str, number: int, archive: Archive) -> None:
    """Kill the process when a function is called for the given time."""
    take_archive(archive)
    owner = importlib.import_module(module)
    function = getattr(owner, name)
    count = 0

    def patched(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(owner, name, patched)


def half_a_save() -> None:
    """Kill the process when half of what was decoded is written."""
    save = torch.save

    def patched(value: Any, file: Any) -> None:
        save(value, file)
        if "train.pt" in str(getattr(file, "name", "")):
            file.flush()
            os.truncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = patched  # type: ignore[assignment]


def test_a_kill_in_the_middle_of_a_download(folder: Path) -> None:
    behaviour = Behaviour(WHOLE, stall_seconds=30)
    with serving(behaviour) as url:
        started = Run(["fit", *SMALL, *EPOCHS, "--data.mirror", url], inside=SMALL_ARCHIVE)
        wait_for(lambda: Path("data/cifar.tar.gz.part").exists() and Path("data/cifar.tar.gz.part").stat().st_size)
        started.kill(signal.SIGKILL)
        started.wait()
        behaviour.stall_seconds = 0
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert behaviour.requests[1].startswith("bytes=")  # it was resumed


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        ("cifar_lit.data.cifar10", "write_atomic", 3),
        pytest.param("cifar_lit.data.cifar10", "extract", 1, marks=pytest.mark.slow),
    ],
    ids=["between two files", "before the extraction"],
)
def test_a_kill_in_the_middle_of_an_extraction(module: str, name: str, number: int, folder: Path) -> None:
    with serving(Behaviour(WHOLE)) as url:
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        assert run(again, inside=functools.partial(kill_in, module, name, number, ARCHIVE)).code == -9
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert not list(Path("data").rglob(".*.part"))


def test_a_lost_file_of_the_extracted_archive_is_repaired(folder: Path) -> None:
    with serving(Behaviour(WHOLE)) as url:
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
        Path("data/cifar-10-batches-py/batches.meta").unlink()
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert Path("data/cifar-10-batches-py/batches.meta").is_file()


def test_a_kill_while_the_decoded_images_are_written(folder: Path) -> None:
    assert run(["fit", *BASE, *EPOCHS], inside=half_a_save).code == -9
    check(run(["fit", *BASE, *EPOCHS]), 0, "")
    cache = Path(os.environ["HOME"]) / ".cache/cifar_lit"
    assert {path.name for path in cache.glob("*/*")} == {"index.pt", "train.pt", "test.pt", ".lock"}
