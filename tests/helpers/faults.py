"""What the tests of faults share: a short training, and what must hold after a fault."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.helpers.processes import Done, run, state_of
from tests.helpers.runs import read_results

EARLIER = Path("earlier/lightning_logs/version_0")
BASE = ["--data.source", "images", "--data.root", "tiny", "--data.val_size", "12", "--data.batch_size", "8"]
EPOCHS = ["--trainer.max_epochs", "3", "--no_report"]
Act = Callable[[], object]


class BugError(Exception):
    """Something that nobody thought of."""


def raise_bug() -> None:
    raise BugError


def hashes(root: Path) -> dict[str, str]:
    """Return a hash of each file below a folder."""
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def litter() -> list[str]:
    """Name what no run may leave behind, however it ends."""
    kinds = (".part", ".probe", ".lock")
    found = [path for path in Path().rglob("*") if path.name.endswith(kinds)]
    return [str(path) for path in found if path.parts[0] not in ("data", "home")]  # there a .lock has its place


def check(done: Done, code: int, says: str) -> None:
    """Compare the exit code and, of a failure, the one line with what they must be."""
    assert done.code == code, done
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    assert len(errors) == (1 if says else 0), done.err
    assert says in "".join(errors)


def check_resumed(undisturbed: dict[str, str]) -> None:
    """Resume a run that was stopped: it ends as the undisturbed one did."""
    check(run(["fit", "--ckpt_path", "last", "--trust_run"]), 0, "")  # some have a network of ours
    assert state_of() == undisturbed
    assert read_results()["epochs"] == 3
    assert litter() == []
