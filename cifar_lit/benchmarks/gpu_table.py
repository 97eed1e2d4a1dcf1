"""The lines and the table of ``scripts/bench.py --gpu``, in Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_lit.evaluation.paired import mean_interval

Row = dict[str, Any]
SPEED_COLUMNS = ("network", "batch_size", "precision", "layout", "mode")


def describe(stage: Mapping[str, Any]) -> str:
    """Return what a stage came to, in one line."""
    rows: list[Row] = stage["rows"]
    failed = [_name(row) for row in rows if "error" in row]
    done = [row for row in rows if "error" not in row]
    parts = [stage["status"] + (f" ({stage['error']})" if "error" in stage else "")]
    if speeds := [row for row in done if "images_per_second" in row and "precision" in row]:
        best = max(speeds, key=lambda row: row["images_per_second"])
        parts.append(f"{best['images_per_second']:,.0f} images/s with {_name(best)}")
    elif fits := [row for row in done if "accuracy" in row]:
        parts.append(_describe_fits(fits))
    elif done:
        parts.append(f"{len(done)} recipes ran")
    parts += [f"failed: {'; '.join(failed)}"] if failed else []
    return f"{', '.join(parts)}, {stage['seconds']:.0f} s"


def table(results: Mapping[str, Any]) -> str:
    """Return the Markdown of all stages: what it was measured on, the speeds, the trainings, and what is missing."""
    stages: Mapping[str, Any] = results["stages"]
    rows: list[Row] = [row for stage in stages.values() for row in stage["rows"]]
    speeds = [row for row in rows if "images_per_second" in row and "precision" in row]
    fits = [row for row in rows if "accuracy" in row]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    data = results["data"]
    parts = [f"{results['device']}; {versions}; data: {data['source']} {data['root']}".rstrip()]
    if results["device"].startswith("cpu"):
        parts.append("The stages were only tried, on a few images: the figures mean nothing.")
    if speeds:
        parts.append("Steady training in a bare loop, at 32 pixels:")
        parts.append(
            _markdown(["network", "batch", "precision", "layout", "mode", "images/s", "ratio"], _ratios(speeds))
        )
    if fits:
        parts.append(f"{_what_it_says(data['source'])} (means with their 95 % interval):")
        titles = ["recipe", "seeds", "accuracy", "with TTA", "training, s", "first training, s", "whole fit, s"]
        titles += ["images/s", "multiplications"]
        recipes = dict.fromkeys(row["recipe"] for row in fits)
        parts.append(_markdown(titles, [_of_seeds([row for row in fits if row["recipe"] == name]) for name in recipes]))
    parts += ["Stages:", _markdown(["stage", "outcome"], [[name, describe(stage)] for name, stage in stages.items()])]
    return "\n\n".join(parts) + "\n"


def _what_it_says(source: str) -> str:
    if source == "cifar10":
        return "Trainings on the official CIFAR-10, whose goals are 0.94 and 0.96 with TTA"
    return "Trainings on other images than the official CIFAR-10: these are no 94 and 96 %"


def _ratios(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the speeds, with the ratio to the network's float32; empty where that was not measured."""
    plain = {row["network"]: row["images_per_second"] for row in rows if row["precision"] == "float32"}
    return [
        [
            *(str(row[name]) for name in SPEED_COLUMNS),
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second'] / plain[row['network']]:.2f}" if row["network"] in plain else "",
        ]
        for row in rows
    ]


def _of_seeds(rows: Sequence[Row]) -> list[str]:
    """Return the cells of a recipe; the first training of the process also starts the device and chooses kernels.

    A whole fit is from the decoded images to the table: with hashing, whitening, training and test.
    """
    train, whole, speed = (
        statistics.median(row[name] for row in rows[1:] or rows)
        for name in ("train_seconds", "seconds", "images_per_second")
    )
    multiplications = rows[0]["multiplications"]
    return [
        rows[0]["recipe"],
        str(len(rows)),
        *(_mean([row[name] for row in rows if row[name] is not None]) for name in ("accuracy", "tta_accuracy")),
        f"{train:.2f}",
        f"{rows[0]['train_seconds']:.2f}",
        f"{whole:.2f}",
        f"{speed:,.0f}",
        "" if multiplications is None else f"{multiplications:.3g}",
    ]


def _describe_fits(rows: Sequence[Row]) -> str:
    _, number, accuracy, tta, seconds, *_ = _of_seeds(rows)
    return f"{number} seeds, accuracy {accuracy}, with TTA {tta}, training {seconds} s"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half_width = mean_interval(values)
    return f"{mean:.4f}" if math.isnan(half_width) else f"{mean:.4f} ± {half_width:.4f}"


def _name(row: Row) -> str:
    """Return what a row is about, with its error if it has one."""
    name = row.get("recipe") or ", ".join(str(row[part]) for part in SPEED_COLUMNS[2:])
    return f"{name}: {row['error']}" if "error" in row else str(name)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [titles, ["---"] * len(titles), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
