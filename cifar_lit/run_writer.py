"""The folder of a run that is being trained."""

import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_lit.errors import UserError
from cifar_lit.files import write_atomic
from cifar_lit.results import Results
from cifar_lit.run import CHECKPOINTS, CONFIG, LAST, LOGS, METRICS, RESULTS

EVENTS = "events.out.tfevents."
EMPTY = ("events", "hparams.yaml", ".")
"""How the names of files begin that are there before the first step."""


class RunWriter:
    """The folder of a run that is being trained: locked, and written atomically.

    ``config`` is written to ``config.yaml`` after the first step. A folder that ``is_new`` is removed again if no step
    is made in it.
    """

    def __init__(self, path: Path, config: str, *, is_new: bool) -> None:
        self.path, self.checkpoints = path, path / CHECKPOINTS
        self._config = config
        self._is_new = is_new
        self._is_started = False
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
            for left_over in path.rglob(".*.part"):  # of a process that was killed
                left_over.unlink(missing_ok=True)
        except Timeout as error:
            raise UserError(f"{path} is in use by another training: wait for it, or stop it") from error
        except NotImplementedError:  # a file system without locks
            pass
        except OSError as error:
            raise UserError(f"`default_root_dir`: {path} cannot be written ({error.strerror}): give another") from error

    @classmethod
    def create(cls, root: Path, config: str) -> "RunWriter":
        """Make a new folder ``root/lightning_logs/version_N``, which no other process gets."""
        logs = root / LOGS
        try:
            logs.mkdir(parents=True, exist_ok=True)
            numbers = [path.name.removeprefix("version_") for path in logs.glob("version_*")]
            number = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
            while True:
                path = logs / f"version_{number}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another run that starts at this moment took it
                    number += 1
        except OSError as error:
            raise UserError(
                f"`default_root_dir` is {root}: no run can be kept there ({error.strerror}); give another folder"
            ) from error
        return cls(path, config, is_new=True)

    def check_space(self, num_bytes: int) -> None:
        """Raise a ``UserError`` if a checkpoint of this size cannot be written, before there is one to lose."""
        probe = self.path / ".probe"
        try:
            block = bytes(1 << 20)
            write_atomic(probe, lambda file: file.writelines(itertools.repeat(block, -(-num_bytes // len(block)))))
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"`default_root_dir`: a checkpoint of {num_bytes:,} bytes cannot be written to {self.path} "
                f"({error.strerror}); free some space or give another folder"
            ) from error

    def start(self) -> None:
        """Write ``config.yaml`` after the first step: from here on the folder is a run, and stays."""
        if not self._is_started:
            write_atomic(self.path / CONFIG, self._config)
            self._is_started = True

    def save_results(self, results: Results) -> None:
        """Write ``results.json``."""
        write_atomic(self.path / RESULTS, results.to_json())

    @property
    def num_epochs(self) -> int:
        """The number of epochs in ``metrics.csv``; 0 where there is none."""
        path = self.path / METRICS
        return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0

    def save_metrics(self, text: str) -> None:
        """Write ``metrics.csv``."""
        write_atomic(self.path / METRICS, text)

    def mark_last(self) -> None:
        """Give ``last.ckpt`` a later time than those of the runs beside it, even if the clock went back.

        No training ends for this: a run beside may be removed just now, and not every file system sets times.
        """
        with contextlib.suppress(OSError):
            times = {path: path.stat().st_mtime_ns for path in self.path.parent.glob(f"*/{CHECKPOINTS}/{LAST}")}
            own = times.pop(self.checkpoints / LAST, 0)
            latest = max(times.values(), default=0)
            if own <= latest:
                os.utime(self.checkpoints / LAST, ns=(latest + 10**9, latest + 10**9))

    def order_events(self) -> None:
        """Let TensorBoard, which sorts events by the time in their names, read the earlier ones first.

        The clock may have gone back since they were written.
        """
        limit = int(time.time()) - 1
        for path in sorted(self.path.glob(f"{EVENTS}*"), reverse=True):
            seconds, dot, rest = path.name.removeprefix(EVENTS).partition(".")
            if seconds.isdecimal() and int(seconds) > limit:
                path.rename(path.with_name(f"{EVENTS}{limit:010d}{dot}{rest}"))
                limit -= 1
            elif seconds.isdecimal():
                limit = int(seconds)

    def close(self) -> None:
        """Release the folder, and remove it if it is new and holds nothing of a training."""
        with contextlib.suppress(OSError):  # Windows keeps an open file
            Path(self._lock.lock_file).unlink(missing_ok=True)  # while no other process can have it
        self._lock.release()
        files = [path for path in self.path.rglob("*") if not path.is_dir()]
        if self._is_new and all(path.name.startswith(EMPTY) for path in files):
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # if it was the first
