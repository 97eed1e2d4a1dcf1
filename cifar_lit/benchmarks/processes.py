"""Commands in processes of their own, and the folder for what they measure."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from cifar_lit.errors import UserError


def run(command: list[str]) -> str:
    """Run a command and return its output; a ``UserError`` if it fails, after what it wrote to standard error."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    _check(done.returncode, command, done.stderr)
    return done.stdout


def make_folder(path: Path) -> None:
    """Make the folder for the results, and try it: before minutes of measuring."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("wb", dir=path):
            pass
    except OSError as error:
        raise UserError(f"--out is {path}: cannot be written ({error.strerror})") from error


def run_on_terminal(command: list[str]) -> float:
    """Run a command on a terminal, so that it draws its progress bars; return its peak of resident memory in GB."""
    master, terminal = os.openpty()
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output: list[bytes] = []

    def read() -> None:
        while True:
            try:
                output.append(os.read(master, 65536))
            except OSError:  # how Linux reports that the other end was closed
                return
            if not output[-1]:
                return

    reader = threading.Thread(target=read)
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    os.close(master)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen was not asked
    _check(process.returncode, command, b"".join(output)[-2000:].decode(errors="replace"))
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _check(exit_code: int, command: list[str], output: str) -> None:
    if exit_code:
        print(output.strip(), file=sys.stderr)
        raise UserError(f"exit code {exit_code} of {' '.join(command)}", exit_code=1)
