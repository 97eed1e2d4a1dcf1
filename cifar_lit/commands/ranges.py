"""What a sweep searches: ``--set NAME=RANGE`` -> the function that gives a trial its value."""

import math
from collections.abc import Callable, Collection
from typing import Any

import yaml

from cifar_lit.errors import UserError

RANGES = "NAME=log:LOW:HIGH, NAME=lin:LOW:HIGH, NAME=int:LOW:HIGH or NAME=VALUE,VALUE"
Suggest = Callable[[Any], Any]
"""A trial of Optuna -> its value."""
MAX_INT = 2**53
"""Beyond it, a database would round."""

NOT_SEARCHED = {"ckpt_path": "a trial trains from the start: leave it out"} | dict.fromkeys(
    ("checkpoint", "checkpoint.monitor"), "trials are compared by one metric: give --checkpoint.monitor for all of them"
)


def parse_ranges(texts: Collection[str], given: Collection[str]) -> dict[str, Suggest]:
    """Read all values of ``--set``; no option may be searched twice, or be among those ``given`` to every trial."""
    ranges = dict(map(parse_range, texts))
    if len(ranges) < len(texts):
        raise UserError("`set`: an option is named twice; give all its values at once")
    for name in ranges:
        if reason := NOT_SEARCHED.get(name):
            raise UserError(f"`set` is {name}: {reason}")
    if both := [name for name in ranges if name in given]:
        raise UserError(f"`set` searches {both[0]}, and --{both[0]} is given, too: leave one out")
    return ranges


def parse_range(text: str) -> tuple[str, Suggest]:
    """Read a value of ``--set``; return the option's name, and the function that gives a trial its value."""
    name, _, values = (part.strip() for part in text.strip().removeprefix("--").partition("="))
    kind, *ends = values.split(":")
    try:
        if not (name and values):
            raise ValueError("a name or its values are missing")
        if kind == "int" and ends:
            low, high = map(int, ends)
            if not -MAX_INT < low < high < MAX_INT:
                raise ValueError(f"the first number must be the lower, and both below {MAX_INT:,}")
            return name, lambda trial: trial.suggest_int(name, low, high)
        if kind in ("log", "lin") and ends:
            start, end = map(float, ends)
            if not (0 < end - start < math.inf and (kind != "log" or start > 0)):
                raise ValueError("the first number must be the lower, both finite, and above 0 for log")
            return name, lambda trial: trial.suggest_float(name, start, end, log=kind == "log")
        choices = split_choices(values)
        if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
            raise ValueError("a choice is between two or more different values")
    except ValueError as error:
        raise UserError(f"`set` is {text}: {error}; give {RANGES}") from error
    return name, lambda trial: trial.suggest_categorical(name, choices)


def split_choices(values: str) -> list[str]:
    """Split at the commas between values: those in a list, a mapping or quotes belong to the value."""
    try:
        node = yaml.compose(f"[{values}]", yaml.SafeLoader)
    except yaml.YAMLError:
        return values.split(",")  # no YAML, and so no list
    parts = node.value if isinstance(node, yaml.SequenceNode) else []
    texts = [values[part.start_mark.index - 1 : part.end_mark.index - 1] for part in parts]
    return [
        part.value if isinstance(part, yaml.ScalarNode) else text.strip()
        for part, text in zip(parts, texts, strict=True)
    ]
