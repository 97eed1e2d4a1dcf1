"""The content of ``results.json``: the metrics of a run, and what they come from."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from cifar_lit.errors import UserError

VERSION = 2
"""Version of the schema. Version 1 had no ``version`` and called test-time augmentation "views"."""

HINT = "delete it, and cifar-lit test RUN --report writes it again"


@dataclass(kw_only=True)
class Results:
    """The metrics of a checkpoint, the data and network they belong to and, after a fit, its training.

    Attributes:
        num_train: Images of the training split. With ``limit_train_batches`` each epoch takes a part, each another one.
        test_images: The fingerprint of the test images.
        num_val: Validation images that were scored, as ``num_test``; 0 for none.
        total_val: Validation images that there are, where only a part was scored, as ``total_test``; None for all.
        checkpoint: The checkpoint that was scored; None for weights that were not saved.
        step: The optimizer steps of this checkpoint, as the file has them; None for results of older versions.
        best_epoch: The epoch of the best checkpoint, counted from 1.
        monitor: The metric that it is the best of.
        duplicates: Which images are in two splits or in two classes; None where nobody looked.
        train_seconds: Seconds of training, with validation and saving; ``images_per_second`` is without validation.
        precision: Of the training, as the Trainer names it; ``kernels`` as the model has them.
        multiplications: Of the training, as ``count_multiplications`` has them; None where they cannot be counted.
        metrics: ``Accuracy/val``, ``MacroAccuracy/val``, ``Loss/val``, and what ``Predictions.metrics`` returns. In
            ``results.json`` they stand beside the other fields: a name with a slash is a metric, as in TensorBoard.
    """

    source: str
    title: str
    num_train: int
    num_val: int
    num_test: int
    num_classes: int
    network: str
    num_parameters: int
    total_val: int | None = None
    total_test: int | None = None
    checkpoint: str | None = None
    step: int | None = None
    recipe: str | None = None
    seed: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    multiplications: int | None = None
    device: str | None = None
    versions: dict | None = None  # type: ignore[type-arg]  # a plain type, which isinstance takes
    precision: str | None = None
    kernels: dict | str | None = None  # type: ignore[type-arg]
    command: str | None = None
    test_images: str | None = None
    monitor: str | None = None
    duplicates: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def of_classes(self, name: str) -> dict[str, float]:
        """Return a metric per class: ``of_classes("Precision")`` maps each class to its precision on test."""
        prefix = f"{name}/test/"
        return {key.removeprefix(prefix): value for key, value in self.metrics.items() if key.startswith(prefix)}

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        # JSON has no NaN: such a value becomes null.
        metrics = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.pop("metrics").items()
        }
        return json.dumps({"version": fields.pop("version"), **metrics, **fields}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "Results":
        """Read the text of ``results.json``; ``origin`` is the file, for the message of the ``UserError``."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{origin} is damaged: it is not JSON ({error}); {HINT}") from error
        if not isinstance(content, dict):
            raise UserError(f"{origin} is damaged: it holds no results; {HINT}")
        version = content.get("version", 1)
        if not isinstance(version, int) or version > VERSION:
            raise UserError(
                f"{origin} has version {version} of the schema, which is newer than {VERSION}: update cifar_lit"
            )
        metrics = {name.replace("ViewsAccuracy/", "TTAAccuracy/"): v for name, v in content.items() if "/" in name}
        values = {**content, "version": VERSION, "metrics": metrics}
        for name, kind in get_type_hints(cls).items():
            value = values.setdefault(name, getattr(cls, name, None))  # a field's default is a class attribute
            if name != "metrics" and not (isinstance(value, kind) and _is_field(value)):
                raise UserError(f"{origin} is damaged: {name} is missing, or of another type; {HINT}")
        if bad := next((name for name, value in metrics.items() if not _is_metric(name, value)), None):
            raise UserError(f"{origin} is damaged: {bad[:100]} is of another type; {HINT}")
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})


def _is_field(value: Any) -> bool:
    """Return whether a value can be a field: a name, a number that is not negative, or names by name."""
    if isinstance(value, dict):
        return all(isinstance(part, str) for part in value.values())
    return value is None or isinstance(value, str) or _is_number(value)


def _is_metric(name: str, value: Any) -> bool:
    """Return whether a value can be the metric of this name: a number, an interval, or the confusion matrix."""
    if name.startswith("AccuracyInterval/"):
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if name.startswith("Confusion/"):
        return isinstance(value, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in value)
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63
