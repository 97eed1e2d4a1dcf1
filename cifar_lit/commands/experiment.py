"""Named settings of ``fit`` with several seeds: each run once, its row kept, by any number of processes."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_lit.commands.setting import CODE, Setting
from cifar_lit.commands.trial import Row, as_options, check, score_test, settled_precision, train
from cifar_lit.errors import UserError
from cifar_lit.files import printable, shorten, write_atomic

ROWS, TESTS, SETTINGS, WEIGHTS, LOCKS = "runs.jsonl", "test.jsonl", "settings.json", "weights", ".locks"
PRECISION = "precision.txt"
"""What the precision ``auto`` stands for in all runs of the folder."""
MEASURED = ("seconds", "multiplications", "epochs", "num_val")
"""Numbers of each row of a run that has an accuracy; the multiplications may be null, where they are not known."""


class Experiment:
    """Runs of settings x seeds in a folder; the same call in another process, or later, does what is left.

    Args:
        folder: Where ``runs.jsonl`` has a row for each run, and ``settings.json`` what each name stands for.
        settings: What is trained. Under one name it must always be the same.
        chosen: The names of those that this call trains, in this order; the others are only noted.
        seeds: Each setting is trained with each of these, so that settings are compared in pairs.
        machine: Options of ``fit`` for all runs that change no result, such as where the images are.
        kept: Names of the settings whose last weights are kept, to be tested.
        work: Makes the row of a run from all options of ``fit``; by default a training that is judged on validation.
    """

    def __init__(
        self,
        folder: Path,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        *,
        chosen: Sequence[str] | None = None,
        machine: Mapping[str, str] | None = None,
        kept: Collection[str] = (),
        work: Callable[[list[str]], Row] | None = None,
    ) -> None:
        self.folder, self.settings, self.machine, self.kept, self.work = folder, settings, machine or {}, kept, work
        by_name = {setting.name: setting for setting in settings}
        self.jobs = [(by_name[name], seed) for seed in seeds for name in (by_name if chosen is None else chosen)]
        try:
            _check_links(folder)
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
            with self.locked(SETTINGS):
                self._note_settings()
        except (OSError, NotImplementedError) as error:  # the latter is filelock's, where there are no locks
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"`to` is {folder}: it cannot be written ({reason}); give another folder") from error

    def rows(self, file: str = ROWS) -> list[Row]:
        """Return the rows of all runs that are done; a line that was being written when its process died is none."""
        path = self.folder / file
        lines = _whole_lines(path.read_bytes()).split(b"\n")[:-1] if path.is_file() else []
        try:
            rows = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): remove the line that is no JSON") from error
        for number, row in enumerate(rows, start=1):
            if not _is_row(row, MEASURED if file == ROWS else ()):
                raise UserError(f"{path} is damaged: line {number} is not of a run, remove it")
        return rows

    def run(self) -> None:
        """Do the runs that nobody has done or does, seed by seed, so that early rows already make pairs."""
        self._forget_precision()
        done = self._done(ROWS)
        if num_done := len(self.jobs) - self.num_left:
            print(
                f"{num_done} of {len(self.jobs)} runs are there already, in {shorten(self.folder / ROWS)}", flush=True
            )
        left = {setting.name: setting for setting, seed in self.jobs if (setting.name, seed) not in done}
        for setting in left.values() if len(left) > 1 else ():
            check([*setting.args, *as_options(self.machine)])  # before the first is trained, perhaps for hours
        while any(self._try(ROWS, self._train, *job) for job in self.jobs):
            pass  # from the first one again: another process may have died, and left its run

    def test(self) -> None:
        """Score the weights that are kept on the test images, once."""
        jobs = [(setting, seed) for setting, seed in self.jobs if self._weights(setting, seed).is_file()]
        while any(self._try(TESTS, self._test, *job) for job in jobs):
            pass

    @property
    def num_left(self) -> int:
        done = self._done(ROWS)
        return sum((setting.name, seed) not in done for setting, seed in self.jobs)

    def locked(self, name: str) -> FileLock:
        return FileLock(self.folder / LOCKS / f"{name}.lock")

    def _done(self, file: str) -> set[tuple[str, int]]:
        return {(row["setting"], row["seed"]) for row in self.rows(file)}

    def _try(self, file: str, work: Callable[[Setting, int], Row], setting: Setting, seed: int) -> bool:
        """Do a run unless it is done or another process does it; return whether it was done here."""
        if (setting.name, seed) in self._done(file):
            return False
        with self._claimed(f"{file}_{setting.name}_{seed}") as is_free:
            if not is_free or (setting.name, seed) in self._done(file):
                return False
            row = {"setting": setting.name, "seed": seed, **work(setting, seed)}
            self._append(row, file)
        result = "diverged" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        seconds = f"{row['seconds']:.0f} s" if "seconds" in row else "test" * (file == TESTS)
        progress = f"{len(self.jobs) - self.num_left} of {len(self.jobs)} runs"
        print(printable(f"{setting.name:<24} seed {seed:<4} {result:<9} {seconds:<9} {progress}"), flush=True)
        return True

    def _train(self, setting: Setting, seed: int) -> Row:
        args = [*setting.args, *self._precision(setting), *as_options(self.machine), f"--seed_everything={seed}"]
        if self.work:
            return self.work(args)
        judged = next((row["val_images"] for row in self.rows() if "val_images" in row), None)
        save = self._weights(setting, seed) if setting.name in self.kept else None
        return train(args, val_images=judged, save=save)

    def _precision(self, setting: Setting) -> list[str]:
        """Return the option for a run whose precision is ``auto``: what that stood for in the first of such runs.

        It is settled before that run, but for work of its own, whose rows have it.
        """
        automatic = {one.name for one in self.settings if one.values.get("trainer.precision") == "auto"}
        if setting.name not in automatic:
            return []
        chosen = [row["precision"] for row in self.rows() if row["setting"] in automatic and "precision" in row]
        path = self.folder / PRECISION
        with self.locked(PRECISION):  # other processes wait, and find it
            if not (chosen or self.work or path.is_file()):
                write_atomic(path, settled_precision([*setting.args, *as_options(self.machine)]))
            if not chosen and path.is_file():
                chosen = [path.read_text(encoding="utf-8")]
        return [f"--trainer.precision={one}" for one in chosen[:1]]

    def _forget_precision(self) -> None:
        """Remove what was settled for runs that all died without a row: the machine may have been busy then."""
        names = [path.name.removesuffix(".lock") for path in (self.folder / LOCKS).glob(f"{ROWS}_*.lock")]
        if (self.folder / PRECISION).is_file() and not self.rows() and all(map(self._is_free, names)):
            (self.folder / PRECISION).unlink(missing_ok=True)

    def _is_free(self, name: str) -> bool:
        with self._claimed(name) as is_free:
            return is_free

    def _test(self, setting: Setting, seed: int) -> Row:
        network = setting.values.get("model.net.class_path")
        trained = next((row for row in self.rows() if (row["setting"], row["seed"]) == (setting.name, seed)), {})
        precision = trained.get("precision", setting.values.get("trainer.precision"))  # older rows have none
        weights = self._weights(setting, seed)
        return score_test(weights, network=network, precision=precision, machine=self.machine)

    def _weights(self, setting: Setting, seed: int) -> Path:
        return self.folder / WEIGHTS / f"{setting.name}_seed{seed}.ckpt"

    def _append(self, row: Row, file: str) -> None:
        """Add a row to a file, whole, whatever other processes do."""
        with self.locked(SETTINGS), self.locked(file), (self.folder / file).open("a+b") as stream:
            self._note_settings()  # another process may have begun with others, and have been first
            stream.seek(0)
            content = stream.read()
            whole = _whole_lines(content)
            stream.truncate(min(len(whole), len(content)))  # without the beginning of a line, of a process that died
            stream.write(b"\n" * (len(whole) - len(content) > 0))
            stream.write(json.dumps(row).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _note_settings(self) -> None:
        """Write down what each name stands for, and refuse other settings under the same name, once there is a row."""
        path = self.folder / SETTINGS
        known = _read_settings(path) if path.is_file() and self.rows() else {}
        for setting in self.settings:
            values = json.loads(json.dumps(setting.identity))
            before = known.setdefault(setting.name, values)
            if CODE in values and before.setdefault(CODE, values[CODE]) != values[CODE]:  # older folders have none
                raise UserError(
                    f"`to` is {self.folder}, where {setting.name} was trained before the file of its network was "
                    "edited: give another folder"
                )
            for name in sorted(before.keys() | values.keys()):
                if before.get(name) != values.get(name):
                    raise UserError(
                        f"`to` is {self.folder}, where {setting.name} has {before.get(name, 'no value')} for --{name} "
                        f"and not {values.get(name, 'no value')}: give another folder"
                    )
        write_atomic(path, json.dumps(known, indent=1) + "\n")

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Hold the lock of a run, which the system releases if this process dies; give whether it was free."""
        lock = self.locked(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _whole_lines(content: bytes) -> bytes:
    """Return the lines of a file; a last one without its end counts if it is whole: an editor may leave it so."""
    tail = content[content.rfind(b"\n") + 1 :]
    try:
        json.loads(tail)
    except (ValueError, RecursionError):
        return content[: len(content) - len(tail)]
    return content + b"\n"


def _is_row(row: Any, measured: Collection[str]) -> bool:
    """Return whether a line of JSON is what is kept of a run: with an accuracy, with all that is measured."""
    if not (isinstance(row, dict) and isinstance(row.get("setting"), str) and type(row.get("seed")) is int):
        return False
    if row.get("accuracy", "") is None:
        return not isinstance(row.get("device"), dict | list)
    is_known = row.get("multiplications", 0) is not None
    numbers = [row.get(name) for name in ("accuracy", *measured) if is_known or name != "multiplications"]
    return all(type(number) in (int, float) and math.isfinite(float(number or 0)) for number in numbers)


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        known = None
    if not (isinstance(known, dict) and all(isinstance(values, dict) for values in known.values())):
        raise UserError(f"{path} is damaged: give another folder")
    return known


def _check_links(folder: Path) -> None:
    """Refuse links, pipes and the like in place of what is written to, locked or read."""
    for pattern in (ROWS, TESTS, SETTINGS, PRECISION, LOCKS, WEIGHTS, f"{LOCKS}/*", f"{WEIGHTS}/*"):
        for path in (folder / pattern, *folder.glob(pattern)):  # a glob misses a link to nothing
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise UserError(f"`to` is {folder}: {path.name} in it is a link, or no file; give another folder")
