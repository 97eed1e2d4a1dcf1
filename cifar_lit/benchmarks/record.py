"""``scripts/record.py``: makes an entry of the record page, checks entries, and draws their table and plot."""

import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import Timeout

from cifar_lit.benchmarks.board import PLOT, README, RECORD_SEEDS, draw
from cifar_lit.benchmarks.entries import NAME, ROW, Entry, checksum, settings_of
from cifar_lit.benchmarks.processes import run
from cifar_lit.benchmarks.rules import FIXED, MIN_SEEDS, check_head, count, problems
from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.commands.experiment import Experiment
from cifar_lit.commands.setting import Setting
from cifar_lit.commands.trial import Row, add_machine_options, as_options, check, machine_options
from cifar_lit.errors import UserError, explain_failure, require
from cifar_lit.files import printable, shorten, write_atomic
from cifar_lit.machine import describe_machine, gemm_rate
from cifar_lit.run import LOGS, Run
from cifar_lit.signals import exit_on_signals

RECORDS = Path(__file__).parent / "records"
FIT = [sys.executable, "-m", "cifar_lit", "fit"]
KERNELS = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_")
"""How the environment variables begin that choose kernels and threads."""
INSTEAD = {
    "seed_everything": "give --seeds",
    "ckpt_path": "each seed trains from the start",
    "no_report": "there is no report",
    "trainer.default_root_dir": "give --to",
    **{name: f"it is always {json.dumps(value)}" for name, value in FIXED.items()},
}
"""What there is for options of ``fit`` that an entry may not have."""
EXAMPLES = """
python scripts/record.py make --name fast --recipe fast --data.source images --data.root images.tar.gz
python scripts/record.py check lightning_logs/record_fast/fast.jsonl
python scripts/record.py draw
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``scripts/record.py`` with these arguments, or those of the process; return the exit code."""
    name, *others = (sys.argv[1:] if args is None else args) or ["nothing"]
    actions = {"make": _make, "check": _check, "draw": _draw, "--help": _help, "-h": _help}
    try:
        if name not in actions:
            raise UserError(f"give make, check or draw, not {name} (--help shows examples)")
        with exit_on_signals():
            return actions[name](others)
    except UserError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        message, code = explain_failure(error) or str(error), 1
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _make(args: list[str]) -> int:
    """Train with each seed in a process of its own, and write the entry."""
    parser = _parser("make --name NAME [options of fit]", "Train with seeds 0, 1, ..., and write an entry.")
    parser.add_argument("--name", required=True, help="of the entry, and of its file")
    parser.add_argument("--seeds", type=int, default=RECORD_SEEDS, help="how many (default: %(default)s)")
    parser.add_argument("--to", help=f"where the rows and the entry are kept (default: {LOGS}/record_NAME)")
    add_machine_options(parser)
    options, given = parser.parse_known_args(args)
    with naming_options(parser.names):
        is_name = re.fullmatch(NAME, options.name) is not None
        require("name", options.name, is_name, "of the letters a to z, digits, _ and -")
        require("seeds", options.seeds, MIN_SEEDS <= options.seeds <= 1000, f"from {MIN_SEEDS} to 1000")
        machine = machine_options(options)
        for option in (word.partition("=")[0] for word in [*given, *as_options(machine)]):
            if reason := INSTEAD.get(option.removeprefix("--")):
                raise UserError(f"{option} is not an option of a record: {reason}")
        fixed = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in FIXED.items()]
        setting = Setting(options.name, [*given, *fixed])
        head = _head([*setting.args, *as_options(machine)])
        folder = Path(options.to or f"{LOGS}/record_{options.name}")
        entry = Entry(folder / f"{options.name}.jsonl", head, [])
        cli, found = check_head(entry)
        if cli and count(cli, num_epochs=1, num_train=2) is None:
            found.append("the multiplications of this network cannot be counted, so it cannot be compared")
        if found:
            raise UserError(found[0])

        def work(args: Sequence[str]) -> Row:
            return {"data": head["data"], "environment": head["environment"], **time_fit(args)}

        experiment = Experiment(folder, [setting], range(options.seeds), machine=machine, work=work)
        try:
            with experiment.locked("make").acquire(timeout=0):
                _check_rows(entry, _rows(experiment, setting))  # before the next seed is trained, perhaps for hours
                experiment.run()
                _write(entry, _rows(experiment, setting))
        except Timeout as error:
            raise UserError(f"`to` is {folder}, where another make runs: side by side, both would be slower") from error
    return 0


def _head(args: Sequence[str]) -> Row:
    """Return the first line of an entry; the images are decoded here, and found in the cache afterwards."""
    cli = check(args, own=())
    source = cli.datamodule.source
    source.prepare()
    if (num_classes := len(source.classes)) != 10:
        raise UserError(f"the images have {num_classes} classes: must be those of CIFAR-10, which has ten")
    machine = describe_machine(torch.device("cpu"))
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "settings": settings_of(cli),
        "data": checksum(source.load("train"), source.load("test")),
        "machine": machine["device"],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(KERNELS)},
        "versions": machine["versions"],
    }


def time_fit(args: Sequence[str]) -> Row:
    """Run ``fit`` in a process of its own; return its results, and the seconds from its start to its end."""
    rate = gemm_rate()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run([*FIT, *args, f"--trainer.default_root_dir={folder}"])
        seconds = time.perf_counter() - started
        (path,) = Path(folder, LOGS).iterdir()
        results = Run(path).results
    assert results is not None
    accuracy = results.metrics["Accuracy/test"]
    of_results = ("multiplications", "epochs", "num_train", "num_val", "num_test", "precision", "versions")
    return {
        "accuracy": results.metrics.get("TTAAccuracy/test", accuracy),
        "accuracy_without_tta": accuracy,
        "seconds": round(seconds, 3),
        "train_seconds": round(results.train_seconds or 0, 3),
        "gflops": round(rate, 1),
        "machine": results.device,
        **{name: getattr(results, name) for name in of_results},
    }


def _rows(experiment: Experiment, setting: Setting) -> list[Row]:
    """Return the rows of an entry; its folder may have those of others."""
    return [row for row in experiment.rows() if row["setting"] == setting.name]


def _check_rows(entry: Entry, rows: Sequence[Row]) -> None:
    """Refuse rows that are not of the machine, environment, versions and images of the entry."""
    for row in rows:
        for name in ("data", "machine", "environment", "versions"):
            if (value := row.get(name, entry.head[name])) != entry.head[name]:  # older rows have no environment
                other = f"has a seed {row['seed']} of another {name} ({value}) than here and now"
                raise UserError(f"`to` is {entry.path.parent}, which {other}, {entry.head[name]}: give another folder")


def _write(entry: Entry, rows: Sequence[Row]) -> None:
    """Write the entry from the rows of all seeds."""
    _check_rows(entry, rows)
    entry.rows.extend({name: row[name] for name in ROW} for row in sorted(rows, key=lambda row: int(row["seed"])))
    for line, text in problems(entry):
        raise UserError(f"{entry.path}:{line}: {text}", exit_code=1)
    write_atomic(entry.path, "".join(f"{json.dumps(part)}\n" for part in (entry.head, *entry.rows)))
    print(f"{shorten(entry.path)}: to submit it, copy it to {shorten(RECORDS)}, and run python scripts/record.py draw")


def _check(args: list[str]) -> int:
    """Print a line for each rule that an entry breaks."""
    parser = _parser("check [FILE...]", f"Check entries: these, or all in {shorten(RECORDS)}.")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, default=sorted(RECORDS.glob("*.jsonl")))
    code, files = 0, parser.parse_args(args).files
    for path in files:
        try:
            found = [f"{shorten(path)}:{line}: {text}" for line, text in problems(Entry.read(path))]
            code = max(code, int(bool(found)))
        except UserError as error:
            found, code = [str(error)], error.exit_code
        for text in found:
            print(printable(" ".join(text.split())))
    print(f"{len(files)} entries, {'with problems' if code else 'no problems'}")
    return code


def _draw(args: list[str]) -> int:
    """Draw the table and the plot of all entries."""
    _parser("draw", f"Write the table of all entries into {shorten(README)}, and draw the plot.").parse_args(args)
    entries = [Entry.read(path) for path in sorted(RECORDS.glob("*.jsonl"))]
    for entry in entries:
        for line, text in problems(entry):
            raise UserError(f"{entry.path}:{line}: {text}", exit_code=1)
    draw(entries)
    print(f"{len(entries)} entries in {shorten(README)}" + f" and {shorten(PLOT)}" * bool(entries))
    return 0


def _help(args: list[str]) -> int:
    about = "Make an entry of the record page, check entries, or draw their table and plot."
    _parser("make|check|draw", about).parse_args(["--help", *args])
    return 0


def _parser(usage: str, description: str) -> CommandParser:
    parser = CommandParser("record", "", description, EXAMPLES)
    parser.usage = f"python scripts/record.py {usage}"
    return parser
