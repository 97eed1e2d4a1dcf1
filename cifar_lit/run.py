"""A run on disk, as it is read."""

import contextlib
import functools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cifar_lit.checkpoint import check_exists, first_nonfinite, load_checkpoint, load_safetensors
from cifar_lit.data.listing import RUNS
from cifar_lit.datamodule import CACHE_DIR, CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.files import shorten
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from cifar_lit.schema import read_bytes, read_yaml
from cifar_lit.trust import check_links, check_network, check_settings, limit_data, only_read

LOGS = RUNS
CHECKPOINTS = "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"
HISTORY = "history"
"""In a checkpoint: for each epoch, from 1, its row of ``metrics.csv``."""
CONFIG, RESULTS, REPORT, METRICS = "config.yaml", "results.json", "report.html", "metrics.csv"
SAFETENSORS = "model.safetensors"


class Run:
    """A trained model on disk, with what is known of its training.

    Args:
        path: The folder of a run (its best checkpoint counts, or the last where there is no best), a checkpoint, or an
            export with ``model.safetensors``.
        trust: Whether the files may do more than hold data, which runs code and writes elsewhere: import the module of
            a network, name a ``mirror``, a ``cache_dir`` or a ``root`` to download to, and lead through links.

    Attributes:
        file: The checkpoint, or the weights of an export.
        folder: The run's folder; None for a checkpoint that lies elsewhere and for an export.

    Raises:
        UserError: If there is no such file; when it is read, if it is damaged or not of this project.
    """

    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        self.path = Path(path)
        self.trust = trust
        self.file = find_checkpoint(self.path)
        self.folder = run_folder(self.file)

    @functools.cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The content of the file, read and checked once; of an export ``hyper_parameters`` and ``state_dict``."""
        is_export = self.file.suffix == ".safetensors"
        checkpoint = load_safetensors(self.file) if is_export else load_checkpoint(self.file)
        check_settings(checkpoint, self.file)
        return checkpoint

    @property
    def model_options(self) -> dict[str, Any]:
        """The hyper-parameters of the ``ImageClassifier``, as plain values."""
        return dict(self.checkpoint["hyper_parameters"])

    @property
    def data_options(self) -> dict[str, Any]:
        """The hyper-parameters of the ``CIFAR10DataModule``, as plain values; an export has none: ``UserError``."""
        if "datamodule_hyper_parameters" not in self.checkpoint:
            raise UserError(f"{self.file} is an export, which has no data settings: give the run it was made from")
        return dict(self.checkpoint["datamodule_hyper_parameters"])

    @property
    def precision(self) -> str:
        """The Trainer's precision that the run was trained in; that of its settings, if an older version made it."""
        precision = self.checkpoint.get("precision")
        with contextlib.suppress(UserError):  # of a damaged config.yaml
            of_trainer = {} if precision else self.config.get("trainer")
            precision = precision or (isinstance(of_trainer, dict) and of_trainer.get("precision"))
        return str(precision or "32-true")

    @property
    def data_state(self) -> dict[str, Any]:
        """The state of the ``CIFAR10DataModule``; empty if an older version made the checkpoint."""
        state = self.checkpoint.get(CIFAR10DataModule.__qualname__)
        return state if isinstance(state, dict) else {}

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.yaml``; empty where there is none."""
        path = self.folder and self.folder / CONFIG
        return read_yaml(path) if path and path.is_file() else {}

    @functools.cached_property
    def results(self) -> Results | None:
        """The content of ``results.json``; None where there is none."""
        path = self.folder and self.folder / RESULTS
        if path is None or not path.is_file():
            return None
        return Results.from_json(read_bytes(path).decode(errors="replace"), origin=str(path))

    @property
    def own_results(self) -> Results | None:
        """The results, if they are those of the file; None if they are of another, or of weights that it had before."""
        results = self.results
        if results is None or Path(results.checkpoint or "").name != self.file.name:
            return None
        is_of_step = results.step in (None, self.checkpoint.get("global_step"))  # older results have none
        return results if is_of_step else None

    def model(self, **overrides: Any) -> ImageClassifier:
        """Return the model, on the CPU and in evaluation mode; ``overrides`` are arguments that differ, as ``tta``."""
        options = self.model_options | overrides
        try:
            check_network(options, self.checkpoint["state_dict"], trust=self.trust)
            model = ImageClassifier(**options)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from error
        try:
            model.load_state_dict(self.checkpoint["state_dict"])
        except RuntimeError as error:  # what torch says of missing and surplus names, and of other shapes
            raise UserError(f"{self.file} does not match its network: {' '.join(str(error).split())}") from error
        self.check_finite(model)
        model.is_new = False
        return model.eval()

    def datamodule(self, **overrides: Any) -> CIFAR10DataModule:
        """Return the data module, of which nothing is loaded; ``overrides`` are arguments that differ, as ``root``.

        Data with other classes than those of the model is a ``UserError``.
        """
        options = self._limited_data(overrides) | overrides
        datamodule = CIFAR10DataModule(**options)
        if not self.trust and "root" not in overrides:
            only_read(datamodule)
        trained_for = self.model_options["classes"]
        if datamodule.classes != trained_for:
            raise UserError(
                f"{self.path} was trained for the classes {', '.join(trained_for)}, and the data has "
                f"{', '.join(datamodule.classes)}: give the data that it was trained on with `root`"
            )
        size = self.model_options.get("image_size", 32)  # older checkpoints have none
        if datamodule.hparams["image_size"] != size:
            raise UserError(f"{self.file} is damaged: its model takes {size} pixels, its data has others")
        datamodule.load_state_dict(self.known_images)
        return datamodule

    def data_places(self, *, given: Collection[str] = ()) -> dict[str, str]:
        """Return the ``root`` and ``cache_dir`` of the images, as ``datamodule`` would use them."""
        options = {"cache_dir": CACHE_DIR, **self._limited_data(given)}
        return {name: str(options[name]) for name in ("root", "cache_dir") if name in options}

    def _limited_data(self, given: Collection[str]) -> dict[str, Any]:
        options = self.data_options
        if not self.trust:
            limit_data(options, given=given)
        return options

    @property
    def known_images(self) -> dict[str, Any]:
        """The state of the data module, with the run's name and the fingerprint of the test images of its results."""
        tested_on = None
        with contextlib.suppress(UserError):  # of a damaged results.json
            tested_on = self.results and self.results.test_images
        return {**self.data_state, "test": tested_on or "", "run": shorten(self.path)}

    @property
    def folder_to_write(self) -> Path | None:
        """The run's folder, if nothing in it leads elsewhere when it is written to; else a ``UserError``."""
        if self.folder and not self.trust:
            check_links(self.folder)
        return self.folder

    def check_finite(self, model: ImageClassifier) -> None:
        """Refuse the file if one of the model's parameters is non-finite in it; a buffer may be."""
        weights = self.checkpoint["state_dict"]
        if name := first_nonfinite((name, weights[name]) for name, _ in model.named_parameters() if name in weights):
            raise UserError(f"{self.file} is unusable: {name} has non-finite values, because its training diverged")


def find_checkpoint(path: Path) -> Path:
    """Return the file that a run is judged by: the path itself, or the best or else the last checkpoint in it."""
    if not os.path.isdir(path):  # noqa: PTH112 (a Path raises for a name that is too long)
        check_exists(path)
        return path
    for name in (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", SAFETENSORS):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} is neither a run's folder with {CHECKPOINTS}/{BEST} or {LAST}, nor an export with {SAFETENSORS}"
    )


def read_history(checkpoint: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Return the rows of each epoch that a checkpoint holds; empty if there are none, or anything else."""
    try:
        rows = checkpoint.get(HISTORY, {}).items()
        return {int(epoch): {str(name): float(value) for name, value in row.items()} for epoch, row in rows}
    except (ValueError, AttributeError, TypeError, OverflowError):
        return {}


def run_folder(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None where it lies elsewhere."""
    folder = checkpoint.parent
    if folder.name != CHECKPOINTS or ".." in folder.parts:
        folder = folder.resolve()  # "." and links may lead there, too
    return folder.parent if folder.name == CHECKPOINTS and (folder.parent / CONFIG).is_file() else None
