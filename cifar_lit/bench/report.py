"""The benchmark's rounds, its table, its chart and its command line."""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from cifar_lit.bench.measures import DEVICE, MEASURES, STEP_BATCH_SIZES, Data, run
from cifar_lit.machine import describe_machine


def measure(data: Data, *, letters: str, repeats: int) -> dict[str, Any]:
    """Measure in turn, round after round, each in a process of its own.

    Args:
        data: What to measure with.
        letters: Which of ``abcdef``.
        repeats: How many rounds.

    Returns:
        ``rounds``, the figures of each measure, ``median`` of each figure, ``data``, ``device`` and ``versions``.

    Raises:
        RuntimeError: If a measurement fails, with its last lines.
    """
    rounds: dict[str, dict[str, list[float]]] = {}
    for i in range(repeats):
        for name in [name for name in MEASURES if name[0] in letters]:
            print(f"round {i + 1} of {repeats}: {name} ...", file=sys.stderr, flush=True)
            task = ["--measure", name, "--source", data.source, "--root", data.root]
            task += ["--num_images", str(data.num_images)]
            output = run([sys.executable, "-m", "cifar_lit.bench.report", *task])
            for figure, value in json.loads(output.splitlines()[-1]).items():
                rounds.setdefault(name, {}).setdefault(figure, []).append(value)
    medians = {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in rounds.items()
    }
    return {"median": medians, "rounds": rounds, "data": dataclasses.asdict(data), **describe_machine(DEVICE)}


def table(median: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """Lay the figures and their ratios out.

    Args:
        median: As ``measure`` gives them.

    Returns:
        Rows of a title and a text; of what was measured only.
    """

    def speed(name: str) -> float | None:
        return median.get(name, {}).get("images_per_second")

    rows = []
    for name, title in (
        ("a, 0 workers", "(a) the tutorial's loop, 0 workers"),
        ("a, 2 workers", "(a) the tutorial's loop, 2 workers"),
        ("b", "(b) bare loop, tensors ready: the limit"),
        ("c", "(c) fit, with everything"),
        ("d, torchvision", "(d) torchvision's transforms, DataLoader"),
        ("d, ours", "(d) our loader, the same augmentation"),
    ):
        if speed(name):
            rows.append((title, f"{speed(name):,.0f} images/s"))
    for title, above, below in (
        ("c / a (the faster)", speed("c"), max(speed("a, 0 workers") or 0, speed("a, 2 workers") or 0)),
        ("c / b", speed("c"), speed("b")),
        ("d, ours / torchvision", speed("d, ours"), speed("d, torchvision")),
    ):
        if above and below:
            rows.append((title, f"{above / below:.2f}"))
    for size in STEP_BATCH_SIZES:
        if f"e, batch {size}" in median:
            rows.append((f"(e) added to a step, batch {size}", f"{median[f'e, batch {size}']['added_ms']:.2f} ms"))
    if "f" in median:
        imports, help_, first = (median["f"][f"{name}_seconds"] for name in ("imports", "help", "first_step"))
        rows += [
            ("(f) importing torch and lightning's CLI", f"{imports:.2f} s"),
            ("(f) --help", f"{help_:.2f} s, {help_ / imports:.2f} times the imports"),
            ("(f) to the end of the first step", f"{first:.2f} s, the imports and {first - imports:.2f} s"),
        ]
    if "c" in median:
        rows.append(("(g) peak of resident memory in fit", f"{median['c']['peak_gb']:.2f} GB"))
    return rows


def draw(median: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the figures as bars.

    Args:
        median: As ``measure`` gives them.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    panels = [
        ("training, images/s", {name: f["images_per_second"] for name, f in median.items() if name[0] in "abc"}),
        ("loading, images/s", {name: f["images_per_second"] for name, f in median.items() if name[0] == "d"}),
        ("added to a step, ms", {name: f["added_ms"] for name, f in median.items() if name[0] == "e"}),
        ("starting, s", {k.removesuffix("_seconds"): v for k, v in median.get("f", {}).items()}),
    ]
    panels = [(title, bars) for title, bars in panels if bars]
    figure = Figure(figsize=(10, 1 + sum(0.5 + 0.35 * len(bars) for _, bars in panels)), layout="constrained")
    heights = [1 + len(bars) for _, bars in panels]
    all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (title, bars) in zip(all_axes, panels, strict=True):
        drawn = axes.barh(list(bars), list(bars.values()), color="tab:blue")
        axes.bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2f}", padding=3)
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main(args: list[str] | None = None) -> None:
    """Run ``scripts/bench.py``.

    Args:
        args: Its options; those of the process where it is None.

    Raises:
        SystemExit: With 2 for bad arguments and 1 where a measurement fails.
    """
    parser = argparse.ArgumentParser(
        prog="python scripts/bench.py",
        description="Measure how fast this machine trains; close everything else before. Prints a table and writes "
        "bench.json and bench.png.",
        epilog="example: python scripts/bench.py --source images --root cifar10-images.tar.gz --repeats 5",
        allow_abbrev=False,
    )
    parser.add_argument("--source", default="synthetic", choices=["synthetic", "images", "cifar10"])
    parser.add_argument("--root", default="data", help="folder or archive, as for --data.root of fit")
    parser.add_argument("--num_images", type=int, default=12_800, help="training images in each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median is given")
    parser.add_argument("--only", default="abcdef", help="letters of what to measure; c gives g, the memory, too")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/bench"), help="folder for what is written")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    for name, lowest in (("num_images", max(STEP_BATCH_SIZES)), ("repeats", 1)):
        if getattr(options, name) < lowest:
            parser.error(f"--{name} is {getattr(options, name)}: give {lowest} or more")
    if not options.only or set(options.only) - set("abcdef"):
        parser.error(f"--only is {options.only!r}: give some of the letters abcdef")
    data = Data(options.source, options.root, options.num_images)
    if options.measure:
        print(json.dumps(MEASURES[options.measure](data)))
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        data.load()  # what is wrong with it is said here, and it is decoded before anything is timed
        results = measure(data, letters=options.only, repeats=options.repeats)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    for title, text in table(results["median"]):
        print(f"{title:<42}{text}")
    (options.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(results["median"], options.out / "bench.png")
    print(f"\nwritten to {options.out}: bench.json, bench.png")


if __name__ == "__main__":
    main()
