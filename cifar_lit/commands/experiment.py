"""Named settings of ``fit`` with several seeds: each run once, its row kept, by any number of processes."""

import contextlib
import gc
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_lit.callbacks.nonfinite import DivergedError
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.cli.filters import without_notices
from cifar_lit.cli.fit import fit
from cifar_lit.commands.sweep import TRIAL_OPTIONS
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.files import printable, write_atomic
from cifar_lit.machine import describe_machine
from cifar_lit.module import ImageClassifier
from cifar_lit.recipes import RECIPES
from cifar_lit.schema import parse_yaml, read_yaml

ROWS, SETTINGS, WEIGHTS = "runs.jsonl", "settings.json", "weights"
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Options of ``fit`` under a name, such as ``("fast", ["--recipe", "fast", "--model.lr=20"])``."""

    name: str
    args: Sequence[str]

    @property
    def values(self) -> dict[str, Any]:
        """What the options set, by their names: those of files, too. A later one wins."""
        values: dict[str, Any] = {}
        words = [part for word in self.args for part in word.split("=", 1)] if self.args else []
        for i, word in enumerate(words):
            if not word.startswith("--"):
                continue
            value = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else "true"
            match word.removeprefix("--"):
                case "config":
                    values |= _flat(read_yaml(Path(value)))
                case "recipe" if value in RECIPES:
                    values |= _flat(read_yaml(RECIPES[value]))
                case name:
                    values[name] = parse_yaml(value)
        return values

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:12]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their names on the command line: ``{"model.lr": 0.1}``."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


class Experiment:
    """Runs of settings x seeds in a folder; the same call in another process, or later, does what is left.

    Args:
        folder: Where ``runs.jsonl`` has a row for each run, and ``settings.json`` what each name stands for.
        settings: What is trained. Under one name it must always be the same.
        seeds: With each of these seeds, so that the settings can be compared in pairs.
        machine: Options of ``fit`` for all runs that change no result, such as where the images are.
        kept: Names of the settings whose last weights are kept, to be tested.
    """

    def __init__(
        self,
        folder: Path,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        *,
        machine: Sequence[str] = (),
        kept: Collection[str] = (),
    ) -> None:
        self.folder, self.settings, self.seeds = folder, settings, seeds
        self.machine, self.kept = machine, kept
        self.jobs = [(setting, seed) for seed in seeds for setting in settings]
        try:
            (folder / ".locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"`to` is {folder}: cannot be created ({error.strerror})") from error
        with self._locked(SETTINGS):
            self._note_settings()

    def rows(self, name: str = ROWS) -> list[Row]:
        """Return the rows of all runs that are done; a line that was being written when its process died is none."""
        path = self.folder / name
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): remove the line") from error

    def run(self) -> None:
        """Do the runs that nobody has done or does, seed by seed, so that early rows already make pairs."""
        while any(self._try(setting, seed) for setting, seed in self.jobs):
            pass  # from the first one again: another process may have died, and left its run

    @property
    def num_left(self) -> int:
        done = self._done()
        return sum((setting.name, seed) not in done for setting, seed in self.jobs)

    def weights(self, name: str, seed: int) -> Path:
        """Return the file of the weights of a run that are kept."""
        return self.folder / WEIGHTS / f"{name}_seed{seed}.ckpt"

    def append(self, row: Row, name: str = ROWS) -> None:
        """Add a row to a file, whole, whatever other processes do."""
        with self._locked(name), (self.folder / name).open("a+b") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)  # without the beginning of a line, of a process that died
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _done(self) -> set[tuple[str, int]]:
        return {(row["setting"], row["seed"]) for row in self.rows()}

    def _try(self, setting: Setting, seed: int) -> bool:
        """Do a run unless it is done or another process does it; return whether it was done here."""
        if (setting.name, seed) in self._done():
            return False
        with self._claimed(f"{setting.name}_seed{seed}") as is_free:
            if not is_free or (setting.name, seed) in self._done():
                return False
            row = self._train(setting, seed)
            self.append(row)
        accuracy = row["accuracy"]
        result = "diverged" if accuracy is None else f"{accuracy:.4f}  {row['seconds']:.0f} s"
        num_jobs = len(self.jobs)
        progress = f"({num_jobs - self.num_left} of {num_jobs} runs)"
        print(printable(f"{setting.name:<24} seed {seed:<3} {result:<16} {progress}"), flush=True)
        return True

    def _train(self, setting: Setting, seed: int) -> Row:
        """Train with a seed, and return the row."""
        watch = Watch()
        args = [
            *TRIAL_OPTIONS,
            "--trainer.limit_val_batches=0",
            *setting.args,
            *self.machine,
            f"--seed_everything={seed}",
        ]
        row: Row = {"setting": setting.name, "seed": seed, "hash": setting.hash}
        try:
            with without_notices():
                fit(args, pruner=watch)
                row |= watch.result()
        except DivergedError as error:
            row |= {"accuracy": None, "diverged": str(error).partition(":")[0]}
        else:
            if setting.name in self.kept:
                path = self.weights(setting.name, seed)
                path.parent.mkdir(exist_ok=True)
                watch.trainer.save_checkpoint(path, weights_only=True)
        device = watch.trainer.strategy.root_device
        del watch
        gc.collect()  # the Trainer's cycles hold the images and weights on the device
        return row | describe_machine(device)

    def _note_settings(self) -> None:
        """Write down what each name stands for, and refuse other settings under the same name."""
        path = self.folder / SETTINGS
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for setting in self.settings:
            values = json.loads(json.dumps(setting.values))
            before = known.setdefault(setting.name, values)
            for name in sorted(before.keys() | values.keys()):
                if before.get(name) != values.get(name):
                    raise UserError(
                        f"`to` is {self.folder}, where {setting.name} has --{name} {before.get(name)}, and not "
                        f"{values.get(name)}: give another folder"
                    )
        write_atomic(path, json.dumps(known, indent=1) + "\n")

    def _locked(self, name: str) -> FileLock:
        return FileLock(self.folder / ".locks" / f"{name}.lock")

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        """Hold the lock of a run, which the system releases if this process dies; give whether it was free."""
        lock = self._locked(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


class Watch(Callback):
    """Counts what a training does, and scores its last weights on validation."""

    trainer: Trainer
    model: ImageClassifier

    def __init__(self) -> None:
        self.num_images: Counter[int] = Counter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self.trainer, self.model = trainer, pl_module
        if trainer.world_size > 1:
            raise UserError(f"`devices`: a run trains in one process, not in {trainer.world_size}")
        if trainer.datamodule.val is None:  # type: ignore[attr-defined]
            raise UserError("`val_size`: the runs are judged on validation, and there is none: give 5000 or 0.1")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.num_images[batch[0].shape[-1]] += len(batch[1])

    def result(self) -> Row:
        """Return the validation accuracy of the last weights, and what the training took."""
        trainer, model, datamodule = self.trainer, self.model, self.trainer.datamodule  # type: ignore[attr-defined]
        epochs, num_steps = trainer.current_epoch, trainer.global_step
        # As a test, which knows test-time augmentation; without the data module, which would load the test images.
        loader = datamodule.val_dataloader()
        trainer.datamodule = None  # type: ignore[attr-defined]
        trainer.test(model, dataloaders=loader, verbose=False)
        predictions = model.predictions
        assert predictions is not None
        metrics = predictions.metrics(model.classes)
        plain, tta = metrics["Accuracy/test"], metrics.get("TTAAccuracy/test")
        throughput = next(one for one in trainer.callbacks if isinstance(one, Throughput))  # type: ignore[attr-defined]
        return {
            "accuracy": plain if tta is None else tta,
            "accuracy_without_tta": plain,
            "num_val": len(predictions.labels),
            "loss": metrics["Loss/test"],
            "epochs": epochs,
            "steps": num_steps,
            "seconds": round(throughput.train_seconds, 3),
            "multiplications": count_multiplications(model, self.num_images, num_steps),
            "images": dict(datamodule.fingerprints),
        }
