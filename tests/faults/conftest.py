"""Fixtures: a folder with images and an earlier run, and what an undisturbed run ends with."""

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.helpers.faults import BASE, EARLIER, EPOCHS
from tests.helpers.images import tiny_files, write_files
from tests.helpers.processes import run, state_of


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny images and a finished run on them."""
    folder = tmp_path_factory.mktemp("faults")
    write_files(folder / "tiny", tiny_files())
    with contextlib.chdir(folder):
        done = run(
            ["fit", *BASE, *EPOCHS, "--trainer.default_root_dir", "earlier"], environment={"HOME": str(folder / "home")}
        )
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(earlier: Path, tmp_path: Path) -> Path:
    """Return a copy of it, which is the working folder."""
    for name in ("tiny", "earlier"):
        shutil.copytree(earlier / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def undisturbed(folder: Path) -> dict[str, str]:
    """Return what the earlier run, which had the same options and no fault, ended with."""
    return state_of(EARLIER / "checkpoints/last.ckpt")
