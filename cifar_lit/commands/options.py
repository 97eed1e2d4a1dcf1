"""The options of ``fit`` that ``test``, ``validate`` and ``compare`` take, too: each command names those that act."""

import argparse
from collections.abc import Iterable
from typing import Any, get_args

from cifar_lit.cli.parser import CommandParser
from cifar_lit.machine import PRECISIONS
from cifar_lit.networks.tta import TTA


def number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def count(text: str) -> int:
    if int(text) >= 2**31:
        raise ValueError("more than a C int holds")
    return int(text)


def boolean(text: str) -> bool:
    return bool(("false", "true").index(text.lower()))


OPTIONS: dict[str, dict[str, Any]] = {
    "data.root": {"help": "where the images are, if not where they were"},
    "data.cache_dir": {"help": "where decoded images are cached"},
    "data.mirror": {"help": "a URL of the archive that is tried first"},
    "model.tta": {
        "choices": ("none", *get_args(TTA)),
        "help": "test-time augmentation (default: that of the run; of several none)",
    },
    "trainer.accelerator": {"help": "cpu, gpu, mps, ... (default: auto)"},
    "trainer.devices": {"help": "how many, or which: 0,1 (default: auto)"},
    "trainer.strategy": {"help": "ddp for several devices (default: auto)"},
    "trainer.num_nodes": {"type": count, "help": "machines (default: 1)"},
    "trainer.precision": {
        "choices": PRECISIONS,
        "metavar": "PRECISION",
        "help": "32-true, bf16-mixed, ... (default: that of the run)",
    },
    "trainer.limit_val_batches": {"type": number, "help": "validation batches, by number or fraction"},
    "trainer.limit_test_batches": {"type": number, "help": "test batches, by number or fraction"},
    "trainer.enable_progress_bar": {"type": boolean, "help": "true or false (default: true)"},
}
"""What is not given has no entry in the parsed options."""
OF_COMPARE = ("data.root", "data.cache_dir", "data.mirror", "model.tta")


def add_options(parser: CommandParser, names: Iterable[str]) -> None:
    for name in names:
        metavar = None if "choices" in OPTIONS[name] else name.rpartition(".")[2].upper()
        parser.add_argument(f"--{name}", **{"default": argparse.SUPPRESS, "metavar": metavar, **OPTIONS[name]})


def given(options: argparse.Namespace, group: str) -> dict[str, Any]:
    """Return the options of a group, such as ``data``, that were given."""
    prefix = f"{group}."
    return {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}
