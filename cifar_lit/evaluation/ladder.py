"""The ladder as a table and a plot: accuracy, what each step adds, what it costs."""

import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifar_lit.evaluation.paired import Estimate, mean_interval, paired_interval

HEADER = ("step", "", "accuracy", "difference", "seconds", "10^12 multiplications")
INK, GRID, LINE, GAIN, LOSS, COST = "#1f2328", "#d9dde2", "#8c959f", "#0a7d4f", "#c0392b", "#3b6fb5"


@dataclass(frozen=True)
class Step:
    """What the runs of a step came to.

    Attributes:
        number: Its number in the ladder.
        title: The idea.
        accuracies: On validation, by seed; without runs that diverged.
        num_diverged: How many diverged.
        seconds: Of training, the median of the runs.
        multiplications: Of a training, the median; NaN where they could not be counted.
        tests: On the test images, by seed; where they were scored.
    """

    number: int
    title: str
    accuracies: dict[int, float]
    num_diverged: int
    seconds: float
    multiplications: float
    tests: dict[int, float]

    @classmethod
    def of(
        cls, number: int, title: str, rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]
    ) -> "Step":
        """Collect the rows of a step, and those of the test of its weights."""
        done = [row for row in rows if row["accuracy"] is not None]
        products = [row["multiplications"] for row in done if row["multiplications"] is not None]
        return cls(
            number,
            title,
            {row["seed"]: row["accuracy"] for row in done},
            len(rows) - len(done),
            statistics.median(row["seconds"] for row in done) if done else math.nan,
            statistics.median(products) if products else math.nan,
            {row["seed"]: row["accuracy"] for row in tests},
        )

    @property
    def accuracy(self) -> Estimate:
        return mean_interval(list(self.accuracies.values()))


def differences(steps: Sequence[Step]) -> list[Estimate | None]:
    """Return what each step adds to the one before it in the list, over the seeds of both; None for the first."""
    pairs = itertools.pairwise(steps)
    return [None, *(paired_interval(first.accuracies, second.accuracies) for first, second in pairs)][: len(steps)]


def in_percent(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return a mean with its interval in percent; nothing for none."""
    if estimate is None or math.isnan(estimate.mean):
        return ""
    text = f"{100 * estimate.mean:{'+' if signed else ''}.2f}"
    return text if math.isnan(estimate.half_width) else f"{text} ± {100 * estimate.half_width:.2f}"


def cells(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    """Return the table as text: accuracies and differences in percent."""
    rows = []
    for step, difference in zip(steps, differences(steps), strict=True):
        title = step.title + f" ({step.num_diverged} diverged)" * (step.num_diverged > 0)
        costs = (
            "" if math.isnan(value) else f"{value:,.{digits}f}"
            for value, digits in ((step.seconds, 1 if step.seconds < 10 else 0), (step.multiplications / 1e12, 1))
        )
        rows.append((str(step.number), title, in_percent(step.accuracy), in_percent(difference, signed=True), *costs))
    return rows


def format_ladder(steps: Sequence[Step]) -> str:
    """Return the table for a terminal."""
    rows = [HEADER, *cells(steps)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            f"{text:{'<' if i == 1 else '>'}{width}}" for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_ladder(steps: Sequence[Step], notes: Sequence[str]) -> str:
    """Return the table in Markdown, with notes below it."""
    titles = (
        "step",
        "idea",
        "validation accuracy, %",
        "difference to the row above",
        "seconds",
        "10¹² multiplications",
    )
    lines = [titles, ("--:", "---", "--:", "--:", "--:", "--:"), *cells(steps)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes]) + "\n"


def format_tests(steps: Sequence[Step]) -> list[str]:
    """Return a line for each step whose weights were scored on the test images."""
    return [
        f"step {step.number} on the test images: {in_percent(mean_interval(list(step.tests.values())))} % "
        f"({len(step.tests)} seeds)"
        for step in steps
        if step.tests
    ]


def plot_ladder(steps: Sequence[Step], *, title: str) -> bytes:
    """Return a PNG: accuracies with intervals, the difference to the step before, and what a training costs."""
    shown = [(step, gain) for step, gain in zip(steps, differences(steps), strict=True) if step.accuracies]
    steps = [step for step, _ in shown]
    figure = Figure(figsize=(10, 1.3 + 0.34 * len(steps)), facecolor="white", layout="constrained")
    accuracy, seconds, products = figure.subplots(1, 3, sharey=True, width_ratios=(3.4, 1, 1))
    _plot_accuracies(accuracy, steps, [gain for _, gain in shown])
    _plot_costs(seconds, [step.seconds for step in steps], "seconds of training")
    _plot_costs(products, [step.multiplications / 1e12 for step in steps], "10¹² multiplications")
    accuracy.set_yticks(range(len(steps)), [f"{step.title}  {step.number:>2}" for step in steps])
    accuracy.set_ylim(len(steps) - 0.4, -0.6)
    ends = [f"{100 * step.accuracy.mean:.1f} %" for step in (steps[0], steps[-1])]
    figure.suptitle(f"From {ends[0]} to {ends[1]}: {title}", fontsize=10, color=INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _plot_accuracies(axes: Axes, steps: Sequence[Step], gains: Sequence[Estimate | None]) -> None:
    means = [100 * step.accuracy.mean for step in steps]
    widths = [100 * (0 if math.isnan(step.accuracy.half_width) else step.accuracy.half_width) for step in steps]
    right = max((mean + width for mean, width in zip(means, widths, strict=True)), default=1)
    left = min((mean - width for mean, width in zip(means, widths, strict=True)), default=0)
    places = range(len(steps))
    axes.plot(means, places, color=LINE, linewidth=1, zorder=1)
    axes.errorbar(means, places, xerr=widths, fmt="o", markersize=4, color=INK, elinewidth=1.5, capsize=2.5, zorder=2)
    for place, (mean, difference) in enumerate(zip(means, gains, strict=True)):
        text = in_percent(difference, signed=True) or f"{mean:.1f}"
        is_clear = difference is not None and abs(difference.mean) > difference.half_width
        colour = INK if not is_clear or difference is None else GAIN if difference.mean > 0 else LOSS
        is_left = mean - left > 0.55 * (right - left)
        end = mean - widths[place] if is_left else mean + widths[place]
        axes.annotate(
            text,
            (end, place),
            xytext=(-7 if is_left else 7, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            ha="right" if is_left else "left",
            va="center",
        )
    axes.set_title("validation accuracy in %, and the difference to the step before", fontsize=9, color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    _clean(axes)


def _plot_costs(axes: Axes, values: Sequence[float], title: str) -> None:
    known = {place: value for place, value in enumerate(values) if not math.isnan(value)}
    axes.barh(list(known), list(known.values()), height=0.55, color=COST)
    largest = max(known.values(), default=1)
    for place, value in known.items():
        axes.annotate(f" {value:,.{0 if value >= 10 else 1}f}", (value, place), fontsize=8, color=INK, va="center")
    axes.set_xlim(0, 1.3 * largest)
    axes.set_xticks([])
    axes.set_title(title, fontsize=9, color=INK)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
