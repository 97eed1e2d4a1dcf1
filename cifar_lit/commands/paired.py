"""``cifar-lit paired``: two settings trained in pairs of equal seeds, and their difference with its interval."""

import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from cifar_lit.cli.config import expand_homes
from cifar_lit.cli.parser import CommandParser, naming_options, reader_may_leave
from cifar_lit.commands.experiment import Experiment
from cifar_lit.commands.ladder import INSTEAD, parse_seeds
from cifar_lit.commands.setting import Setting, holding_out
from cifar_lit.commands.trial import MACHINE_OPTIONS, Row, add_machine_options, as_options, machine_options
from cifar_lit.errors import UserError
from cifar_lit.evaluation.ladder import in_percent
from cifar_lit.evaluation.paired import Estimate, mean_interval, paired_interval
from cifar_lit.files import shorten
from cifar_lit.run import LOGS

EXAMPLES = """
cifar-lit paired --second '--model.momentum 0.9' --seeds 10
cifar-lit paired --first '--recipe tuned' --second '--config mine.yaml'
"""
NAMES = ("first", "second")


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options, common = parser.parse_known_args(_joined(args))
    with naming_options(parser.names):
        given = {name: _words(name, vars(options)[name]) for name in NAMES}
        for name, words in {**given, "": [*common, *as_options(machine_options(options))]}.items():
            _check(words, f"--{name} has " if name else "")
        of_each = {name: [*given[name], *common] for name in NAMES}
        settings = [Setting(name, [*args, *holding_out(args)]) for name, args in of_each.items()]
        if settings[0].values == settings[1].values:
            raise UserError("`first` and `second` set the same: they must differ in a setting")
        searched = json.dumps([setting.identity for setting in settings], sort_keys=True)
        folder = Path(options.to or f"{LOGS}/paired_{hashlib.sha256(searched.encode()).hexdigest()[:8]}")
        experiment = Experiment(folder, settings, parse_seeds(options.seeds), machine=machine_options(options))
        experiment.run()  # in turn: each seed with the first setting, then with the second
        with reader_may_leave():
            print("\n" + "\n".join(summarise(experiment)))
    return 0


def _joined(args: Sequence[str]) -> list[str]:
    """Join an option with the options that are its value, which argparse would take for the next option."""
    joined: list[str] = []
    for word in args:
        if joined[-1:] and joined[-1] in ("--first", "--second"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def summarise(experiment: Experiment) -> list[str]:
    """Return the table as lines of text: both settings, and the second minus the first over the seeds of both."""
    of_both = [{row["seed"]: row for row in experiment.rows() if row["setting"] == name} for name in NAMES]
    accuracies, seconds = (
        [{seed: row[name] for seed, row in rows.items() if row["accuracy"] is not None} for rows in of_both]
        for name in ("accuracy", "seconds")
    )
    lines = [f"{'':<12}{'accuracy, %':>15}{'seconds':>10}{'10^12 multiplications':>23}"]
    for name, rows in zip(NAMES, of_both, strict=True):
        done = [row for row in rows.values() if row["accuracy"] is not None]
        accuracy = in_percent(mean_interval([row["accuracy"] for row in done]))
        diverged = f"  {len(rows) - len(done)} diverged" * (len(rows) > len(done))
        lines.append(f"{name:<12}{accuracy:>15}{_costs(done)}{diverged}")
    difference = paired_interval(*accuracies)
    alike = [seed for seed in seconds[0] if seed in seconds[1] and len({_place(rows[seed]) for rows in of_both}) == 1]
    ratios = [seconds[1][seed] / seconds[0][seed] for seed in alike if seconds[0][seed]]
    num_diverged = sum(row["accuracy"] is None for rows in of_both for row in rows.values())
    ratio = f"{statistics.median(ratios):.2f} x" if ratios else ""
    lines += [
        f"{'difference':<12}{in_percent(difference, signed=True):>15}{ratio:>10}",
        "",
        _verdict(difference, num_diverged),
    ]
    nums = sorted({row["num_val"] for rows in of_both for row in rows.values() if "num_val" in row})
    num_pairs = len(accuracies[0].keys() & accuracies[1].keys())
    lines.append(
        f"{num_pairs} pairs of equal seeds, the last epoch on {', '.join(f'{n:,}' for n in nums) or 'no'} validation "
        "images; 95 % intervals; the median of the seconds"
    )
    places = sorted({_place(row) for rows in of_both for row in rows.values()})
    lines += [f"on {'; '.join(places)}"] if places else []
    if experiment.num_left:
        lines.append(f"{experiment.num_left} runs are being done by other processes")
    return [*lines, f"rows  {shorten(experiment.folder / 'runs.jsonl')}"]


def _costs(rows: Sequence[Row]) -> str:
    seconds = [row["seconds"] for row in rows]
    products = [row["multiplications"] for row in rows if row["multiplications"] is not None]
    return (f"{statistics.median(seconds):>10.1f}" if seconds else f"{'':>10}") + (
        f"{statistics.median(products) / 1e12:>23.2f}" if products else ""
    )


def _place(row: Row) -> str:
    """Return on what a run was trained."""
    versions = row.get("versions")
    return f"{row.get('device')}, torch {versions.get('torch') if isinstance(versions, dict) else 'unknown'}"


def _verdict(difference: Estimate, num_diverged: int) -> str:
    """Say what the interval of the difference allows to say, and no more."""
    mean, half_width = difference
    if num_diverged:
        return f"{num_diverged} runs diverged: the pairs that are left do not show which one is better."
    if math.isnan(half_width):
        return "Fewer than two pairs do not show which one is better: give more --seeds."
    if half_width < 1e-9 < abs(mean):  # but for rounding
        return "All differences are the same, so that their spread is not known: give more --seeds."
    if abs(mean) <= half_width:
        return "The interval of the difference holds 0: so many pairs do not show which one is better."
    return f"The {NAMES[mean > 0]} setting is better: the interval of the difference does not hold 0."


def _words(name: str, text: str) -> list[str]:
    """Return the options of one setting."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"`{name}` is {text}: {error}; it must be options of fit, as '--recipe tuned'") from error
    if words and not words[0].startswith("--"):
        raise UserError(f"`{name}` is {text}: must be options of fit, as '--recipe tuned'")
    return expand_homes(words)


def _check(words: Sequence[str], start: str) -> None:
    """Refuse options of ``fit`` that are not those of one setting."""
    for word in words:
        option = word.partition("=")[0]
        name = option.removeprefix("--")
        if name in INSTEAD and name not in ("recipe", "trainer.max_epochs"):
            raise UserError(f"{start}{option}, which is not an option of paired: {INSTEAD[name]}")
        if start and name in MACHINE_OPTIONS:
            raise UserError(f"{start}{option}, which is the same for both settings: give it outside of the quotes")


def _parser() -> CommandParser:
    parser = CommandParser(
        "paired",
        "--second OPTIONS [options of fit for both]",
        "Train two settings in turn with the same seeds, and say what the second adds on validation. The test images "
        "are not used. Started several times, the processes share the runs.",
        EXAMPLES,
    )
    parser.add_argument("--first", default="--recipe tutorial", help="options of fit, in quotes (default: %(default)s)")
    parser.add_argument("--second", required=True, help="options of fit, in quotes")
    parser.add_argument("--seeds", default="10", help="how many seeds, or which: 0,1,7 or 5-9 (default: 10)")
    parser.add_argument("--to", help=f"where the rows are kept (default: {LOGS}/paired_..., one for each pair)")
    add_machine_options(parser)
    return parser
