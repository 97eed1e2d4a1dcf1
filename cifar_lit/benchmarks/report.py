"""The benchmark's rounds, table, chart and command line."""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_lit.benchmarks.measures import DEVICE, MEASURES, STEP_BATCH_SIZES, Data
from cifar_lit.benchmarks.processes import make_folder, run
from cifar_lit.errors import UserError
from cifar_lit.files import write_atomic
from cifar_lit.machine import describe_machine
from cifar_lit.signals import exit_on_signals

LETTERS = "abcdef"
SPEEDS = {
    "a, 0 workers": "(a) the tutorial's loop, 0 workers",
    "a, 2 workers": "(a) the tutorial's loop, 2 workers",
    "b": "(b) bare loop, tensors ready: the limit",
    "c": "(c) fit, with everything",
    "d, torchvision": "(d) torchvision's transforms, DataLoader",
    "d, ours": "(d) our loader, the same augmentation",
}
"""Titles of the measures in images per second."""
NAMES = {
    "imports_seconds": "(f) importing torch and lightning's CLI",
    "help_seconds": "(f) fit --help",
    "first_step_seconds": "(f) fit, to the end of the first step",
}
"""Titles of the times of measure f."""
Medians = dict[str, dict[str, float]]
"""For each measure its values by name, each the median of the rounds."""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``scripts/bench.py`` with these options, or those of the process; return the exit code."""
    parser = _parser()
    options = parser.parse_args(args)
    data = Data(options.source, options.root, options.num_images)
    try:
        of_cpu = ("only", "repeats", *(["num_images"] if options.device == "cuda" else []))  # a GPU takes all images
        for name in of_cpu if options.gpu else ("minutes", "device"):
            if (value := getattr(options, name)) != parser.get_default(name):
                raise UserError(f"--{name} is {value}, and does nothing {'beside' if options.gpu else 'without'} --gpu")
        with exit_on_signals():  # also out of a stage, which runs in a session of its own, and must not be left
            return _run(data, options)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _run(data: Data, options: argparse.Namespace) -> int:
    if options.gpu:
        from cifar_lit.benchmarks.gpu import report  # which imports the command line of Lightning

        return report(data, options)
    if options.measure:
        print(json.dumps(MEASURES[options.measure](data)))
    else:
        _report(data, options)
    return 0


def _report(data: Data, options: argparse.Namespace) -> None:
    """Measure, print the table, and write ``bench.json`` and ``bench.png``."""
    for name, lowest in (("num_images", max(STEP_BATCH_SIZES)), ("repeats", 1)):
        if getattr(options, name) < lowest:
            raise UserError(f"--{name} is {getattr(options, name)}: must be at least {lowest}")
    if not options.only or set(options.only) - set(LETTERS):
        raise UserError(f"--only is {options.only!r}: give some of the letters {LETTERS}")
    make_folder(options.out)
    data.load()  # shows what is wrong with it, and decodes it before anything is timed
    results = measure(data, letters=options.only, repeats=options.repeats)
    for title, text in table(results["median"]):
        print(f"{title:<42}{text}")
    write_atomic(options.out / "bench.json", json.dumps(results, indent=2) + "\n")
    draw(results["median"], options.out / "bench.png")
    print(f"\nwritten to {options.out}: bench.json, bench.png")


def measure(data: Data, *, letters: str, repeats: int) -> dict[str, Any]:
    """Measure in turn, round after round, each in a process of its own.

    Args:
        data: The data to measure with.
        letters: Which of ``abcdef``.
        repeats: Number of rounds.

    Returns:
        ``rounds``, the values of each measure, their ``median``, ``data``, ``device`` and ``versions``.
    """
    rounds: dict[str, dict[str, list[float]]] = {}
    for i in range(repeats):
        for name in [name for name in MEASURES if name[0] in letters]:
            print(f"round {i + 1} of {repeats}: {name} ...", file=sys.stderr, flush=True)
            task = ["--measure", name, "--source", data.source, "--root", data.root]
            task += ["--num_images", str(data.num_images)]
            output = run([sys.executable, "-m", "cifar_lit.benchmarks.report", *task])
            for key, value in json.loads(output.splitlines()[-1]).items():
                rounds.setdefault(name, {}).setdefault(key, []).append(value)
    medians = {
        name: {key: statistics.median(repeated) for key, repeated in values.items()} for name, values in rounds.items()
    }
    return {"median": medians, "rounds": rounds, "data": dataclasses.asdict(data), **describe_machine(DEVICE)}


def table(median: Medians) -> list[tuple[str, str]]:
    """Return rows of a title and a text for what was measured, and for the ratios."""
    speed = {name: median[name]["images_per_second"] for name in SPEEDS if name in median}
    rows = [(SPEEDS[name], f"{value:,.0f} images/s") for name, value in speed.items()]
    tutorial = max(speed.get("a, 0 workers", 0), speed.get("a, 2 workers", 0))
    for title, above, below in (
        ("c / a (the faster)", speed.get("c"), tutorial),
        ("c / b", speed.get("c"), speed.get("b")),
        ("d, ours / torchvision", speed.get("d, ours"), speed.get("d, torchvision")),
    ):
        if above and below:
            rows.append((title, f"{above / below:.2f}"))
    for size in STEP_BATCH_SIZES:
        if f"e, batch {size}" in median:
            rows.append((f"(e) added to a step, batch {size}", f"{median[f'e, batch {size}']['added_ms']:.2f} ms"))
    if "f" in median:
        imports, help_, first = (median["f"][f"{name}_seconds"] for name in ("imports", "help", "first_step"))
        rows += [
            (NAMES["imports_seconds"], f"{imports:.2f} s"),
            (NAMES["help_seconds"], f"{help_:.2f} s, {help_ / imports:.2f} times the imports"),
            (NAMES["first_step_seconds"], f"{first:.2f} s, the imports and {first - imports:.2f} s"),
        ]
    if "c" in median:
        rows.append(("(g) peak of resident memory in fit", f"{median['c']['peak_gb']:.2f} GB"))
    return rows


def bars(median: Medians) -> dict[str, dict[str, float]]:
    """Return the values of each panel of the chart by the names of their bars."""
    speed = {name: values["images_per_second"] for name, values in median.items() if name in SPEEDS}
    startup = {NAMES[name]: value for name, value in median.get("f", {}).items()}
    panels = {
        "training, images/s": {SPEEDS[name]: value for name, value in speed.items() if name[0] in "abc"},
        "loading, images/s": {SPEEDS[name]: value for name, value in speed.items() if name[0] == "d"},
        "added to a step, ms": {f"(e) {name[3:]}": v["added_ms"] for name, v in median.items() if name[0] == "e"},
        "startup, s": startup,
    }
    return {title: values for title, values in panels.items() if values}


def draw(median: Medians, path: Path) -> None:
    """Draw the values as bars, into a PNG file."""
    from matplotlib.figure import Figure

    panels = bars(median)
    figure = Figure(figsize=(10, 1 + sum(0.5 + 0.35 * len(values) for values in panels.values())), layout="constrained")
    heights = [1 + len(values) for values in panels.values()]
    all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
        drawn = axes.barh(list(values), list(values.values()), color="tab:blue")
        axes.bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2f}", padding=3)
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--only", default=LETTERS, help="letters of what to measure; c includes g, the memory")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/bench"), help="folder for the results")
    gpu = parser.add_argument_group("on a GPU")
    gpu.add_argument("--gpu", action="store_true", help="smoke, variants of training and the recipes for a GPU instead")
    gpu.add_argument("--minutes", type=float, default=9.0, help="for all stages; later ones are skipped")
    gpu.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the stages, with --num_images 1000"
    )
    gpu.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
