"""What the command line is called and how it refuses: the subcommands, their descriptions, errors of one line."""

import argparse
import contextlib
import difflib
import importlib
import linecache
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from traceback import walk_tb
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

SUBCOMMANDS = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
    "validate": {"model", "dataloaders", "datamodule", "verbose"},
    "test": {"model", "dataloaders", "datamodule", "verbose"},
}
"""What can be done with Lightning's command line, and the arguments of the Trainer's method that are no options."""

COMMANDS = ("predict", "export", "demo", "sweep")
"""What else can be done: each is a module with a ``main`` of its own."""

OVERVIEW = """\
usage: cifar-lit COMMAND [options]

Train image classifiers on CIFAR-10 or on pictures of your own.

  fit        train, keep what is best on validation, and test it once
  test       score a run on validation and test; compare several runs
  validate   score a run on validation alone
  predict    say what a run sees in pictures
  demo       look at pictures in the browser
  export     write a run's model as ONNX, torch.export or safetensors
  sweep      search for settings, judged on validation

python scripts/fit.py is the same as cifar-lit fit, and so on. Each of them has
--help, with examples.
"""

DESCRIPTIONS = {
    "fit": {
        "usage": "python scripts/fit.py [options]",
        "description": "Train, keep the checkpoint that is best on validation, and test it once.",
        "epilog": """\
examples:
  python scripts/fit.py
  python scripts/fit.py --recipe tuned --seed_everything 1
  python scripts/fit.py --trainer.max_epochs 3 --model.lr 0.05
  python scripts/fit.py --data.source images --data.root pictures
  python scripts/fit.py --data.source synthetic --lr_finder
  python scripts/fit.py --ckpt_path last
""",
    },
    "validate": {
        "usage": "cifar-lit validate RUN_OR_CHECKPOINT [options]",
        "description": "Score a run or a checkpoint on validation.",
        "epilog": "examples:\n  cifar-lit validate lightning_logs/version_0\n",
    },
    "test": {
        "usage": "python scripts/test.py RUN_OR_CHECKPOINT [options]",
        "description": "Score a run or a checkpoint on validation and test. Several of them are compared in one table.",
        "epilog": """\
examples:
  python scripts/test.py lightning_logs/version_0
  python scripts/test.py lightning_logs/version_0 --report
  python scripts/test.py lightning_logs/version_0 lightning_logs/version_1
""",
    },
}
"""How each is called, what it does, and examples."""


class Formatter(DefaultHelpFormatter):
    """jsonargparse's layout of ``--help``, which leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class Parser(LightningArgumentParser):
    """Lightning's parser, with errors of one line and no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with the arguments, in one line, and exit with 2."""
        parsers = [self]
        for action in self._actions:
            parsers += (getattr(action, "_name_parser_map", None) or {}).values()
        options = [option for parser in parsers for option in parser._option_string_actions]
        self.exit(2, f"error: {' '.join(message.split())}{suggestion(message, options)} (--help lists all options)\n")


def suggestion(message: str, known: Iterable[str]) -> str:
    """Find what may have been meant by a misspelt word.

    Args:
        message: An error message that ends with it or, of argparse, with all that it does not know.
        known: What there is.

    Returns:
        A question, or nothing.
    """
    word = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0] or message
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""


class CommandParser(argparse.ArgumentParser):
    """A parser of Python's own, with the same manners, for the commands that are not Lightning's.

    Args:
        usage: How it is called.
        description: What it does, in a sentence.
        examples: Command lines, one in each line.
    """

    def __init__(self, usage: str, description: str, examples: str) -> None:
        super().__init__(
            usage=usage,
            description=textwrap.fill(description, 78),
            epilog=f"examples:\n{textwrap.indent(examples.strip(), '  ')}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, in one line, and exit with 2."""
        meant = suggestion(message, self._option_string_actions)
        self.exit(2, f"error: {' '.join(message.split())}{meant} (--help lists all options)\n")


def import_extra(name: str, *, extra: str) -> Any:
    """Import a package that not everybody needs.

    Args:
        name: The package.
        extra: The extra of this project that installs it.

    Returns:
        The module.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"this needs {name}, which is not installed: pip install 'cifar-lit[{extra}]'") from error


def is_for_people(error: BaseException) -> bool:
    """Tell an error that a ``raise`` of this package made, whose message says all, from a bug: that has a traceback."""
    *_, last = walk_tb(error.__traceback__)
    frame, line_number = last
    line = linecache.getline(frame.f_code.co_filename, line_number)
    return str(frame.f_globals["__name__"]).startswith("cifar_lit.") and line.lstrip().startswith("raise ")


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Take it for no error where whoever reads the output has seen enough, as head has."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more at its end


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Leave out what a further Trainer says once more: the seed, and what the machine has."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quieten() -> None:
    """Leave out what says nothing about the run."""
    noise = re.compile("Tip:|TPU available|model summary callbacks|Restoring states|Loaded model|`Trainer.fit` stopped")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: not noise.search(record.getMessage()))
    for message in (
        # What Lightning 2.6 still calls of newer torch, and TensorBoard for the graph.
        ".*LeafSpec.*",
        ".*torch.jit.trace.*",
        # We log per epoch, so an interval of steps means nothing.
        ".*smaller than the logging interval.*",
        # The summary's line on the size of the weights.
        ".*not supported by the model summary.*",
        # The metrics add up over the processes by themselves.
        ".*sync_dist=True.*",
        # A run that goes on writes into its own folder.
        ".*exists and is not empty.*",
        ".*dirpath has changed.*",  # and the best is known all the same
        # Scoring a checkpoint needs no ModelCheckpoint.
        ".*callbacks used to create the checkpoint.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture is said by read_picture
