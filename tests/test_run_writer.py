"""The folder of a run: what keeps it, which run is the last, and the order of TensorBoard's events."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from cifar_lit.run_writer import RunWriter


@pytest.mark.parametrize("name", ["checkpoints/epoch=0.ckpt", "deep/er/other.ckpt", "notes.txt"])
def test_a_folder_that_holds_anything_of_a_training_is_never_removed(name: str) -> None:
    writer = RunWriter.create(Path(), "config")
    path = writer.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, writer.path / "events.out.tfevents.1.host.1.0", writer.path / "hparams.yaml"):
        file.touch()
    writer.close()
    assert path.exists()


def test_a_folder_without_any_is_removed() -> None:
    writer = RunWriter.create(Path(), "config")
    writer.checkpoints.mkdir()
    for name in ("events.out.tfevents.1.host.1.0", "hparams.yaml", "checkpoints/.last.ckpt.1f.part"):
        (writer.path / name).touch()
    writer.close()
    assert not Path("lightning_logs").exists()


def test_the_run_that_was_saved_last_is_the_last_even_if_the_clock_went_back() -> None:
    other = Path("lightning_logs/version_8/checkpoints/last.ckpt")
    other.parent.mkdir(parents=True)
    other.touch()
    ahead = time.time() + 5000
    os.utime(other, (ahead, ahead))
    writer = RunWriter.create(Path(), "config")
    writer.checkpoints.mkdir()
    last = writer.checkpoints / "last.ckpt"
    last.touch()
    writer.mark_last()
    assert last.stat().st_mtime > ahead
    writer.mark_last()
    assert last.stat().st_mtime < ahead + 2
    os.utime(other, (1, 1))
    last.touch()
    writer.mark_last()  # where the clock is right, nothing is changed
    assert last.stat().st_mtime < ahead - 4000
    writer.close()


def test_no_training_ends_because_a_time_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.create(Path(), "config")
    writer.checkpoints.mkdir()
    (writer.checkpoints / "last.ckpt").touch()
    other = Path("lightning_logs/version_8/checkpoints/last.ckpt")
    other.parent.mkdir(parents=True)
    other.touch()
    os.utime(other, (2**33, 2**33))
    monkeypatch.setattr(os, "utime", raise_oserror)
    writer.mark_last()
    stat = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **options: stat(path, **options) if path != other else raise_oserror()
    )
    writer.mark_last()  # it is removed at this moment
    writer.close()


def raise_oserror(*_: object, **__: object) -> Any:
    raise FileNotFoundError


def test_events_of_the_future_come_before_those_of_a_run_that_resumes() -> None:
    writer = RunWriter.create(Path(), "config")
    now = int(time.time())
    for seconds, rest in ((now - 500, "b.1.0"), (now - 300, "b.2.0"), (now + 70, "b.9.0"), (now + 90, "b.1.0")):
        (writer.path / f"events.out.tfevents.{seconds}.{rest}").write_text(f"{seconds - now} {rest}")
    (writer.path / "events.out.tfevents.odd").touch()
    writer.order_events()
    (writer.path / f"events.out.tfevents.{int(time.time())}.a.0.0").write_text("new")
    events = [path.read_text() for path in sorted(writer.path.glob("events*")) if not path.name.endswith("odd")]
    assert events == ["-500 b.1.0", "-300 b.2.0", "70 b.9.0", "90 b.1.0", "new"]
    writer.close()
