"""Argument parsers whose errors are one line, and which accept no abbreviated options."""

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from cifar_lit.errors import UserError, suggest

HINT = " (--help lists all options)"
TRUST_HELP = (
    "Let a run do more than hold data: import its own classes, use its paths and URLs. Only for runs you trust."
)


def option_names(options: Iterable[str]) -> dict[str, str]:
    """Map the name of each argument to its option: ``batch_size`` to ``--data.batch_size``."""
    return {option.removeprefix("--").rpartition(".")[2]: option for option in options if option.startswith("--")}


@contextlib.contextmanager
def naming_options(options: dict[str, str]) -> Iterator[None]:
    """Let a ``UserError`` call arguments by the options of the command line."""
    try:
        yield
    except UserError as error:
        error.options = {**options, **error.options}
        raise


def _refuse(message: str, options: Iterable[str]) -> NoReturn:
    """Raise a ``UserError`` for a message of argparse, with a suggestion for a misspelt option."""
    message = message.removesuffix(HINT)  # that of a parser within this one
    word = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0] or message
    raise UserError(f"{message}{suggest(word, options)}{HINT}")


class Formatter(DefaultHelpFormatter):
    """jsonargparse's layout of ``--help``, which leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class FitParser(LightningArgumentParser):
    """Lightning's parser, with errors of one line and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _refuse(message, self._option_string_actions)


class CommandParser(argparse.ArgumentParser):
    """Python's parser, with the same behaviour, for all commands but ``fit``."""

    def __init__(self, name: str, arguments: str, description: str, examples: str) -> None:
        super().__init__(
            usage=f"cifar-lit {name} {arguments} [options]",
            description=textwrap.fill(description, 78),
            epilog=f"examples:\n{textwrap.indent(examples.strip(), '  ')}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        _refuse(message, self._option_string_actions)

    def add_trust(self) -> None:
        """Add ``--trust_run``, for a command that reads a run."""
        self.add_argument("--trust_run", action="store_true", dest="trust", help=TRUST_HELP)

    @property
    def names(self) -> dict[str, str]:
        return {**option_names(self._option_string_actions), "trust": "--trust_run"}


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Treat it as no error if whoever reads the output has closed it, as ``head`` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more when it exits
