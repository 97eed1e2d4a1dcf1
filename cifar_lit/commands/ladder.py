"""``cifar-lit ladder``: from the tutorial's settings to the best, one idea at a time, and what each is worth."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.commands.experiment import Experiment, Setting
from cifar_lit.commands.sweep import MACHINE_OPTIONS
from cifar_lit.errors import UserError, require
from cifar_lit.recipes import LADDER

EXAMPLES = """
cifar-lit ladder --data.source images --data.root cifar10-images.tar.gz
cifar-lit ladder --steps 0-3 --seeds 2 --epochs 2
cifar-lit ladder --steps 0,16 --seeds 5-9 --to lightning_logs/ends
"""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options, training = parser.parse_known_args(args)
    with naming_options(parser.names):
        require("epochs", options.epochs, options.epochs >= 1, "at least 1")
        steps = parse_numbers("steps", options.steps or f"0-{len(LADDER) - 1}", largest=len(LADDER) - 1)
        is_count = options.seeds.isdecimal()
        seeds = list(range(int(options.seeds))) if is_count else parse_numbers("seeds", options.seeds)
        require("seeds", options.seeds, bool(seeds), "at least 1, or a list as 0,1,7")
        given = {word.partition("=")[0].removeprefix("--") for word in training}
        for name, instead in (
            ("seed_everything", "seeds"),
            ("trainer.max_epochs", "epochs"),
            ("recipe", "steps"),
            ("ckpt_path", "to"),
        ):
            if name in given:
                raise UserError(f"--{name} is what each step sets itself: give --{instead}")
        machine = [f"--{name}={value}" for name in MACHINE_OPTIONS if (value := vars(options)[name]) is not None]
        common = [f"--trainer.max_epochs={options.epochs}", *training]
        settings = [step_setting(step, common) for step in steps]
        kept = [LADDER[0].stem, LADDER[-1].stem]
        experiment = Experiment(Path(options.to), settings, seeds, machine=machine, kept=kept)
        experiment.run()
    with reader_may_leave():
        print(f"{experiment.num_left} runs are left to other processes" if experiment.num_left else "all runs are done")
    return 0


def step_setting(step: int, options: Sequence[str]) -> Setting:
    """Return the settings of a step: the files up to its own, one upon the other, and options for all steps."""
    files = [part for path in LADDER[: step + 1] for part in ("--config", str(path))]
    return Setting(LADDER[step].stem, [*files, *options])


def parse_numbers(name: str, text: str, largest: int = 2**32 - 1) -> list[int]:
    """Return the numbers that a text as ``0-3,7`` lists, in its order; a range may fall."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        ends = [int(end) for end in found.groups(default=found[1])] if found else []
        if not ends or max(ends) > largest or abs(ends[1] - ends[0]) > 10_000:
            raise UserError(f"`{name}` is {text:.60}: must be numbers from 0 to {largest}, as 0-3,7")
        direction = 1 if ends[1] >= ends[0] else -1
        numbers += range(ends[0], ends[1] + direction, direction)
    return list(dict.fromkeys(numbers))


def _parser() -> CommandParser:
    parser = CommandParser(
        "ladder",
        "[options of fit]",
        "Train step by step from the tutorial's settings to the best ones, each with several seeds, and say what each "
        "step is worth on validation. Started several times, the processes share the runs.",
        EXAMPLES,
    )
    parser.add_argument("--steps", help="numbers of the steps, as 0-5,9 (default: all)")
    parser.add_argument("--seeds", default="5", help="how many seeds, or which: 0,1,7 or 5-9 (default: 5)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each run (default: 8)")
    parser.add_argument("--to", default="lightning_logs/ladder", help="where the rows are kept (default: %(default)s)")
    for name in MACHINE_OPTIONS:  # of fit, and passed on to it
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser
