"""Fixtures: a home folder for each test, tiny images, a finished run, a command that must fail, real images."""

import asyncio
import contextlib
import functools
import gc
import io
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cifar_lit.main import main
from tests.helpers.images import tiny_files, write_files
from tests.helpers.runs import FEW_EPOCHS, copy_run


def pytest_configure() -> None:
    """Share the cores among the workers that run tests side by side; the processes that they start do the same."""
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if num_workers > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_workers))


def pytest_collection_finish() -> None:
    """Let later collections of garbage pass over the half a million objects of the imports: each takes 0.3 s less."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _own_garbage() -> Iterator[None]:
    """Blame a module, and none after it, for the sockets, files and event loops that its tests leave open."""
    yield
    asyncio.set_event_loop(None)  # which keeps the last one
    gc.collect()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path) -> Iterator[None]:
    """Keep each test's cache and logs in a folder of its own, and what it sets in the environment to itself.

    No test asks the developer's proxies, nor those that urllib remembers from an earlier test. A test that undoes what
    it has patched undoes nothing of this.
    """
    with patch.dict(os.environ), pytest.MonkeyPatch.context() as own:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]
        for name in ("HOME", "USERPROFILE"):
            os.environ[name] = str(tmp_path / "home")
        own.setattr("urllib.request._opener", None)
        own.chdir(tmp_path)
        yield


@pytest.fixture(autouse=True)
def _no_name_server() -> Iterator[None]:
    """Let no name end in .invalid, without a question to a name server, which may take long, or may lie."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **options)

    with patch.object(socket, "getaddrinfo", getaddrinfo):
        yield


@pytest.fixture
def gradio(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return Gradio, or skip; close the event loops that it makes with each page and never closes."""
    make, loops = asyncio.new_event_loop, []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", new_event_loop)
    yield pytest.importorskip("gradio")
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Return a folder of 60 training and 24 test images of three classes, in odd sizes and four formats."""
    return write_files(tmp_path / "tiny", tiny_files())


@pytest.fixture
def tiny_args(tiny_root: Path) -> list[str]:
    """Return the options that train on the tiny images."""
    return ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "12"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Return a function that trains on the tiny images, once a session, and returns where, and what was printed."""

    @functools.cache
    def train(report: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("trained")
        root = write_files(folder / "tiny", tiny_files())
        data = ["--data.source", "images", "--data.root", str(root), "--data.val_size", "12"]
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
            monkeypatch.setenv("HOME", str(folder / "home"))
            monkeypatch.chdir(folder)
            with contextlib.redirect_stderr(io.StringIO()):
                assert main(["fit", *data, *FEW_EPOCHS, report, "--seed_everything", "3"]) == 0
        return folder, printed.getvalue()

    return train


@pytest.fixture
def run(trained: Callable[[str], tuple[Path, str]], tiny_root: Path, tmp_path: Path) -> str:
    """Copy a run that was trained on the tiny images, and return what was printed."""
    return copy_run(*trained("--no_report"), tmp_path)


@pytest.fixture
def reported_run(trained: Callable[[str], tuple[Path, str]], tiny_root: Path, tmp_path: Path) -> str:
    """Copy a run that was trained the same, with a report, and return what was printed."""
    return copy_run(*trained("--report"), tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[int, str]]:
    """Return a function that runs a command line that must fail, and returns its exit code and its one line."""

    def run(args: list[str]) -> tuple[int, str]:
        capsys.readouterr()
        code = main(args)
        _, marker, message = capsys.readouterr().err.partition("error: ")
        assert message.count("\n") == 1, message
        return code, marker + message.strip()

    return run


@pytest.fixture
def real_images() -> Path:
    """Return the folder or archive of real images, or skip."""
    path = os.environ.get("CIFAR_LIT_IMAGES")
    if not path:
        pytest.skip("CIFAR_LIT_IMAGES does not name a folder or archive of real images")
    return Path(path)


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where all tests, in all workers, cache the decoded real images."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "real"
