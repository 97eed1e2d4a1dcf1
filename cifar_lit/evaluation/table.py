"""The table that a run ends with."""

from pathlib import Path

from cifar_lit.files import printable, quote
from cifar_lit.results import Results
from cifar_lit.run import REPORT

TITLES = {
    "accuracy": "Accuracy",
    "95 % interval": "AccuracyInterval",
    "with TTA": "TTAAccuracy",
    "macro accuracy": "MacroAccuracy",
    "top-5 accuracy": "Top5Accuracy",
    "loss": "Loss",
}
"""The metric of each row."""


def format_table(results: Results, *, run: str | None = None, trust: str = "", has_report: bool = True) -> str:
    """Return the metrics as a table for a terminal of 80 columns; what is not known has no row.

    ``trust`` is what ``needed_trust`` returns of the network. Without ``has_report`` a report in the run's folder is of
    other results.
    """
    lines = [f"{'':<20}{'validation':>12}{'test':>12}"]
    for title, name in TITLES.items():
        val, test = (_format(results.metrics.get(f"{name}/{split}")) for split in ("val", "test"))
        if val or test:
            lines.append(f"{title:<20}{val:>12}{test:>12}")
    per_class = results.of_classes("ClassAccuracy")
    num_images = [sum(row) for row in results.metrics.get("Confusion/test") or []] or [1] * len(per_class)
    if per_class:
        lines += ["", "test accuracy per class"]
    lines += [
        f"  {printable(name)[:29]:<30}{_format(value) if number else 'no images':>12}"
        for (name, value), number in zip(per_class.items(), num_images, strict=False)
    ]
    rows = _describe(results, run, trust)
    if run is not None and has_report and Path(run, REPORT).is_file():
        rows["report"] = f"{run}/{REPORT}"
    lines += ["", *(f"{title:<12}{printable(text)}" for title, text in rows.items())]
    return "\n".join(lines)


def describe_data(results: Results) -> str:
    """Return the title of the data and how many images were used; a part of a split is marked."""
    sizes = {
        "train": (results.num_train, None),
        "validation": (results.num_val, results.total_val),
        "test": (results.num_test, results.total_test),
    }
    parts = [
        f"{number:,} {name}" if total is None else f"a part ({number:,} of {total:,}) of {name}"
        for name, (number, total) in sizes.items()
        if number
    ]
    return f"{results.title}: {', '.join(parts)}"


def _format(value: float | list[float] | None) -> str:
    if value is None:
        return ""
    return "-".join(f"{end:.3f}" for end in value) if isinstance(value, list) else f"{value:.4f}"


def _describe(results: Results, run: str | None, trust: str) -> dict[str, str]:
    rows = {
        "data": describe_data(results),
        "network": f"{results.network}, {results.num_parameters:,} parameters",
    }
    epochs, seconds, speed = results.epochs, results.train_seconds, results.images_per_second
    if epochs is not None and seconds is not None and speed is not None:
        time = f"{seconds:.{0 if seconds >= 10 else 1}f} s"
        rows["training"] = f"{epochs} epoch{'s' if epochs != 1 else ''} in {time}, {speed:,.0f} images/s"
        if results.multiplications:
            rows["training"] += f", {results.multiplications:.2e} multiplications"
    by = f", best by {results.monitor}" if results.monitor not in (None, "Accuracy/val") else ""
    epoch = f", of epoch {results.best_epoch}{by}" if results.best_epoch else ""
    rows["checkpoint"] = f"{results.checkpoint or 'none: the last weights'}{epoch}"
    if run is not None:
        rows["run"] = run
        if any(Path(run).glob("events.out.tfevents.*")):
            rows["curves"] = f"tensorboard --logdir {quote(str(Path(run).parent))}"
        if results.checkpoint:
            rows["test again"] = f"cifar-lit test {quote(run)}{trust}"
    return rows
