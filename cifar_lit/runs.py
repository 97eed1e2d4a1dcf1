"""Run folders: a new one for each run, the one to go on with, and whether it can be written."""

import contextlib
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

LOGS = "lightning_logs"


class RunFolder:
    """The folder that a training writes into, which is its own while it runs.

    Attributes:
        path: The folder; None before there is one.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._is_new = False
        self._lock: FileLock | None = None

    def create(self, root: Path) -> Path:
        """Make a new folder ``lightning_logs/version_N``, which no other process gets.

        Args:
            root: The folder of ``lightning_logs``.

        Returns:
            The new folder.

        Raises:
            ValueError: If it cannot be made.
        """
        logs = root / LOGS
        try:
            logs.mkdir(parents=True, exist_ok=True)
            numbers = [path.name.removeprefix("version_") for path in logs.glob("version_*")]
            number = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
            while True:
                self.path = logs / f"version_{number}"
                try:
                    self.path.mkdir()
                    break
                except FileExistsError:  # another run that starts at this moment took it
                    number += 1
        except OSError as error:
            self.path = None
            raise ValueError(
                f"--trainer.default_root_dir is {root}: no run can be kept there ({error.strerror})"
            ) from error
        self._is_new = True
        self._take(self.path)
        return self.path

    def reopen(self, path: Path) -> None:
        """Take the folder of an earlier run.

        Args:
            path: The folder.

        Raises:
            ValueError: If another process trains there.
        """
        self._take(path)
        self.path = path

    def share(self, root: Path) -> None:
        """Take a folder that a logger of the user's keeps in order.

        Args:
            root: The folder.

        Raises:
            ValueError: If it cannot be made.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--trainer.default_root_dir is {root}: it cannot be made ({error.strerror})") from error
        self.path = root

    def check_space(self, num_bytes: int) -> None:
        """Try whether a checkpoint could be written, before there is one to lose.

        Args:
            num_bytes: The checkpoint's size.

        Raises:
            ValueError: If it could not.
        """
        if self.path is None:
            return
        probe = self.path / ".probe"
        try:
            with probe.open("wb") as file:
                for start in range(0, num_bytes, 1 << 20):
                    file.write(bytes(min(1 << 20, num_bytes - start)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(
                f"--trainer.default_root_dir: a checkpoint of {num_bytes:,} bytes cannot be written into {self.path} "
                f"({error.strerror}); make room or give another folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Give the folder up.

        Args:
            keep: Whether it is of use; a new one is removed otherwise.
        """
        if self._lock is not None:
            with contextlib.suppress(OSError):  # Windows keeps an open file
                Path(self._lock.lock_file).unlink(missing_ok=True)  # while no other process can have it
            self._lock.release()
        if self.path is not None and self._is_new and not keep:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # where it was the first

    def _take(self, path: Path) -> None:
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"{path} is being trained in by another process: wait for it, or stop it") from error
        except NotImplementedError:  # a file system without locks
            return
        except OSError as error:
            raise ValueError(
                f"--trainer.default_root_dir: {path} cannot be written into ({error.strerror}): give another folder"
            ) from error
        self._lock = lock


def last_checkpoint(root: Path) -> Path:
    """Find the checkpoint that was saved last.

    Args:
        root: The folder of ``lightning_logs``.

    Returns:
        The newest ``checkpoints/last.ckpt`` of its runs.

    Raises:
        ValueError: If there is none.
    """
    found = list((root / LOGS).glob("*/checkpoints/last.ckpt"))
    if not found:
        raise ValueError(f"--ckpt_path last: no run in {root / LOGS} has a checkpoints/last.ckpt to go on with")
    return max(found, key=lambda path: path.stat().st_mtime)


def run_of(checkpoint: Path) -> Path | None:
    """Find the run that a checkpoint belongs to.

    Args:
        checkpoint: Its file.

    Returns:
        The run's folder; None where the file lies elsewhere.
    """
    run = checkpoint.parent.parent
    return run if checkpoint.parent.name == "checkpoints" and (run / "config.yaml").is_file() else None
