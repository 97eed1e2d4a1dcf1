"""``cifar-lit ladder``: from the tutorial's settings to the best, one idea at a time, and what each is worth."""

import argparse
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.commands.experiment import TESTS, Experiment
from cifar_lit.commands.setting import Setting
from cifar_lit.commands.trial import LEFT_OUT, Row, add_machine_options, as_options, machine_options
from cifar_lit.errors import UserError, require, suggest
from cifar_lit.evaluation.ladder import Step, format_ladder, format_tests, markdown_ladder, plot_ladder
from cifar_lit.files import shorten, write_atomic
from cifar_lit.recipes import LADDER, title_of

EXAMPLES = """
cifar-lit ladder --data.source images --data.root cifar10-images.tar.gz
cifar-lit ladder --steps 0-3 --seeds 2 --epochs 2
cifar-lit ladder --steps 0,16 --seeds 5-9 --to lightning_logs/ends
cifar-lit ladder --show 5 > step5.yaml
"""
TABLE, PLOT = "ladder.md", "ladder.png"
INSTEAD = {
    "seed_everything": "give --seeds",
    "trainer.max_epochs": "give --epochs",
    "recipe": "each step has its own settings: give --steps",
    "ckpt_path": "the same command resumes",
    "checkpoint.monitor": "a run is judged by the accuracy of its last epoch",
    "trainer.default_root_dir": "give --to",
    "trainer.fast_dev_run": "give --trainer.limit_train_batches",
    **LEFT_OUT,
    **dict.fromkeys(
        tuple(
            f"trainer.{name}"
            for name in ("limit_val_batches", "limit_test_batches", "check_val_every_n_epoch", "val_check_interval")
        ),
        "a run is judged by all validation images, once, at its end",
    ),
    **dict.fromkeys(
        ("trainer.devices", "trainer.num_nodes", "trainer.strategy"),
        "a run takes one device, and several processes with the same command share the runs",
    ),
}
"""What there is for options of ``fit`` that are none here."""
OWN_OPTIONS = ("--steps", "--seeds", "--epochs", "--test", "--show")


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options, training = parser.parse_known_args(args)
    with naming_options(parser.names):
        require("epochs", options.epochs, options.epochs >= 1, "at least 1")
        for word in [*training, *as_options(machine_options(options))]:
            option = word.partition("=")[0]
            if instead := INSTEAD.get(option.removeprefix("--")):
                raise UserError(f"{option} is not an option of ladder: {instead}")
            if word.startswith("--") and (near := suggest(option, OWN_OPTIONS)):
                raise UserError(f"unrecognized arguments: {option}{near}")  # before fit has its guess
        common = [f"--trainer.max_epochs={options.epochs}", *training]
        if options.show is not None:
            require("show", options.show, 0 <= options.show < len(LADDER), f"a step from 0 to {len(LADDER) - 1}")
            return _show(step_setting(options.show, [*common, *as_options(machine_options(options))]))
        experiment = _experiment(options, common)
        experiment.run()
        if options.test:
            num_left = experiment.num_left
            require("test", f"given, and {num_left} runs are not done", not num_left, "given again after them")
            experiment.test()
        with reader_may_leave():
            print(f"\n{write_ladder(experiment)}")
    return 0


def _experiment(options: argparse.Namespace, common: Sequence[str]) -> Experiment:
    steps = parse_numbers("steps", options.steps or f"0-{len(LADDER) - 1}", largest=len(LADDER) - 1)
    ends = {0, len(LADDER) - 1}
    if options.test and not ends & {*steps}:
        raise UserError(f"`steps` is {options.steps}: must have 0 or {max(ends)}, which `test` scores")
    return Experiment(
        Path(options.to),
        [step_setting(step, common) for step in range(len(LADDER))],
        parse_seeds(options.seeds),
        chosen=[LADDER[step].stem for step in steps],
        machine=machine_options(options),
        kept=[LADDER[0].stem, LADDER[-1].stem],
    )


def _show(setting: Setting) -> int:
    """Print the settings of a step as a file for ``fit --config``."""
    nested: dict[str, Any] = {}
    for name, value in setting.values.items():
        *groups, last = name.split(".")
        functools.reduce(lambda inner, group: inner.setdefault(group, {}), groups, nested)[last] = value
    with reader_may_leave():
        print(yaml.safe_dump(nested, sort_keys=False), end="")
    return 0


def write_ladder(experiment: Experiment) -> str:
    """Write table and plot of all runs that are in the folder, and return the table as text for a terminal."""
    with experiment.locked(TABLE):
        rows, tests = experiment.rows(), experiment.rows(TESTS)
        steps = []
        for number, path in enumerate(LADDER):
            own, tested = ([row for row in of if row["setting"] == path.stem] for of in (rows, tests))
            steps.append(Step.of(number, title_of(path), own, tested))
        steps = [step for step in steps if step.accuracies or step.num_diverged]
        notes = _notes(rows, steps)
        written = [TABLE, *([PLOT] if any(step.accuracies for step in steps) else [])]
        write_atomic(experiment.folder / TABLE, markdown_ladder(steps, notes))
        if PLOT in written:
            write_atomic(experiment.folder / PLOT, plot_ladder(steps, title=notes[0]))
    left = f"{experiment.num_left} runs are being done by other processes\n" if experiment.num_left else ""
    places = " and ".join(shorten(experiment.folder / name) for name in written)
    return "\n".join([format_ladder(steps), "", *notes, f"{left}{places}"])


def _notes(rows: Sequence[Row], steps: Sequence[Step]) -> list[str]:
    """Return what the reader of the table needs to know."""
    done = [row for row in rows if row["accuracy"] is not None]
    counts, epochs, nums, devices = (
        _range(values)
        for values in (
            [len(step.accuracies) for step in steps],
            [row["epochs"] for row in done],
            [row["num_val"] for row in done],
            [row["device"] for row in rows],
        )
    )
    return [
        f"epochs: {epochs}; seeds: {counts}; validation images: {nums}; "
        + ("one seed has no interval" if counts == "1" else "95 % intervals"),
        "Each run is judged by its last epoch; the differences are those of equal seeds."
        + (f" On {devices}." if rows else ""),
        *format_tests(steps),
    ]


def _range(values: Sequence[Any]) -> str:
    """Return the value that all have, or else the lowest and the highest."""
    ends = dict.fromkeys((min(values, default=0), max(values, default=0)))
    return " to ".join(f"{end:,}" if isinstance(end, int) else str(end) for end in ends)


def step_setting(step: int, options: Sequence[str]) -> Setting:
    """Return the settings of a step: the files up to its own, one upon the other, and options for all steps."""
    files = [part for path in LADDER[: step + 1] for part in ("--config", str(path))]
    return Setting(LADDER[step].stem, [*files, *options])


def parse_numbers(name: str, text: str, largest: int = 2**32 - 1) -> list[int]:
    """Return the numbers that a text as ``0-3,7`` lists, in its order; a range may fall."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part.strip())
        ends = [int(end) for end in found.groups(default=found[1])] if found else []
        if not ends or max(ends) > largest or abs(ends[1] - ends[0]) > 10_000:
            raise UserError(f"`{name}` is {text:.60}: must be numbers from 0 to {largest}, as 0-3,7")
        direction = 1 if ends[1] >= ends[0] else -1
        numbers += range(ends[0], ends[1] + direction, direction)
    return list(dict.fromkeys(numbers))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds from 0 of a number of them, or those that a list names."""
    if re.fullmatch(r"\d{1,10}", text) is None:
        return parse_numbers("seeds", text)
    require("seeds", text, 1 <= int(text) <= 1000, "from 1 to 1000, or a list as 0,7")
    return list(range(int(text)))


def _parser() -> CommandParser:
    parser = CommandParser(
        "ladder",
        "[options of fit]",
        "Train step by step from the tutorial's settings to those of fast10, each with several seeds, and say what "
        "each step is worth on validation. Started several times, the processes share the runs.",
        EXAMPLES,
    )
    parser.add_argument("--steps", help="numbers of the steps, as 0-5,9 (default: all)")
    parser.add_argument("--seeds", default="5", help="how many seeds, or which: 0,1,7 or 5-9 (default: 5)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each run (default: 8)")
    parser.add_argument(
        "--test", action="store_true", help="score the first and the last step on the test images, once"
    )
    parser.add_argument("--show", type=int, metavar="STEP", help="print the settings of a step, for fit --config")
    parser.add_argument("--to", default="lightning_logs/ladder", help="where the rows are kept (default: %(default)s)")
    add_machine_options(parser)
    return parser
