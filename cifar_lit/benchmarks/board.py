"""The record page: the table between two marks in README.md, and the plot."""

import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from cifar_lit.benchmarks.entries import Entry
from cifar_lit.errors import UserError
from cifar_lit.evaluation.card import plain_markdown
from cifar_lit.evaluation.ladder import GRID, INK, in_percent
from cifar_lit.evaluation.paired import mean_interval
from cifar_lit.files import printable, write_atomic

README = Path(__file__).parent / "README.md"
PLOT = Path(__file__).parents[2] / ".github" / "records.png"
BEGIN, END = "<!-- python scripts/record.py draw writes what follows -->\n", "<!-- end of the records -->\n"
TITLES = """\
| entry | images | seeds | accuracy with TTA, % | without, % | 10¹² multiplications | seconds | 10¹² by GEMM | machine |
|---|---|--:|--:|--:|--:|--:|--:|---|
"""
COLOURS = {"official": "#3b6fb5", "JPEG": "#0a7d4f", "synthetic": "#8c959f"}
RECORD_SEEDS = 10
"""How many seeds a record needs."""
NO_RECORDS = ("fast", "fast_250", "fast5")
"""Entries that break a rule and stand for comparison, whatever their seeds: README.md says which rule."""


class Summary:
    """What the seeds of an entry come to: accuracies with their intervals, and the medians of what they cost."""

    def __init__(self, entry: Entry) -> None:
        assert entry.images is not None
        self.name, self.images, self.machine = entry.path.stem, entry.images.title, entry.head["machine"]
        values = {name: [row[name] for row in entry.rows] for name in entry.rows[0]}
        self.num_seeds = len(values["seed"])
        self.accuracy, self.without_tta = (mean_interval(values[f"accuracy{end}"]) for end in ("", "_without_tta"))
        self.seconds, self.rate = statistics.median(values["seconds"]), max(values["gflops"])
        self.machine += "".join(f", {name}={value}" for name, value in sorted(entry.head["environment"].items()))
        self.costs = {
            "multiplications": statistics.median(values["multiplications"]) / 1e12,
            "seconds": self.seconds,
            "gemm": self.seconds * self.rate / 2e3,
        }

    @property
    def is_candidate(self) -> bool:
        """Whether it may be a record, and is compared with others; generated images are there to try the commands."""
        return self.num_seeds >= RECORD_SEEDS and self.name not in NO_RECORDS and self.images != "synthetic"

    def cell(self, cost: str, others: Sequence["Summary"]) -> str:
        """Return a cost as text; bold where no record of these images is as accurate at no more of it."""
        rivals = [one for one in others if one.images == self.images and one.is_candidate]
        value, mean = self.costs[cost], self.accuracy.mean
        better = [one for one in rivals if one.accuracy.mean >= mean and one.costs[cost] <= value]
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return f"**{text}**" if better == [self] else text


def table(entries: Sequence[Entry]) -> str:
    """Return the table in Markdown, sorted by images and accuracy; records are bold."""
    summaries = sorted(map(Summary, entries), key=lambda one: (one.images, -one.accuracy.mean))
    lines = []
    for one in summaries:
        link, accuracies = f"[{one.name}](records/{one.name}.jsonl)", map(in_percent, (one.accuracy, one.without_tta))
        costs = one.cell("multiplications", summaries), f"{one.seconds:,.0f}", one.cell("gemm", summaries)
        machine = f"{printable(plain_markdown(one.machine))}, {one.rate:.0f} GFLOP/s"
        lines.append(f"| {' | '.join((link, one.images, str(one.num_seeds), *accuracies, *costs, machine))} |\n")
    image = f"\n![Accuracy against cost](../../.github/{PLOT.name})\n"
    return "".join([TITLES, *lines, image]) if lines else "There are no entries yet.\n"


def plot(entries: Sequence[Entry]) -> bytes:
    """Return a PNG: accuracies against multiplications and against seconds; of less than ten seeds, hollow."""
    figure = Figure(figsize=(9, 3.6), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost, title in (
        (left, "multiplications", "10¹² multiplications"),
        (right, "seconds", "seconds, each on its machine"),
    ):
        for summary in map(Summary, entries):
            _mark(axes, summary, cost)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(title, fontsize=9, color=INK)
        axes.grid(color=GRID, linewidth=0.7)
        axes.margins(x=0.25, y=0.15)
        axes.tick_params(labelsize=8, labelcolor=INK)
    left.set_ylabel("test accuracy with TTA, %", fontsize=9, color=INK)
    left.yaxis.set_major_formatter("{x:g}")
    low, high = left.get_ylim()
    left.set_ylim(min(low, high - 0.8), max(high, low + 0.8))  # at least, so that noise does not fill the plot
    for title in sorted({Summary(entry).images for entry in entries}):
        left.scatter([], [], color=COLOURS[title], label=f"{title} images")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _mark(axes: Axes, one: Summary, cost: str) -> None:
    place, colour = (one.costs[cost], 100 * one.accuracy.mean), COLOURS[one.images]
    fill = colour if one.num_seeds >= RECORD_SEEDS else "white"
    half_width = 100 * one.accuracy.half_width
    axes.errorbar(place[0], place[1], half_width, fmt="o", color=colour, mfc=fill, markersize=5, capsize=2)
    axes.annotate(one.name, place, xytext=(6, 4), textcoords="offset points", fontsize=8, color=INK)


def draw(entries: Sequence[Entry]) -> None:
    """Write the table into README.md, and the plot if there are entries."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{README} has not the lines between which the table is: {BEGIN.strip()} and {END.strip()}")
    if entries:
        write_atomic(PLOT, plot(entries))
    write_atomic(README, before + begin + table(entries) + end + after)
