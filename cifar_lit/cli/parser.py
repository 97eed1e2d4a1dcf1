"""Argument parsers whose errors are one line, and which accept no abbreviated options."""

import argparse
import contextlib
import re
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import callbacks, loggers, profilers, strategies
from lightning.pytorch.cli import LightningArgumentParser

from cifar_lit.cli.config import expand_homes
from cifar_lit.cli.words import in_english, instead_of, is_of_fit, kind_in_english, option_names, suggest_option
from cifar_lit.errors import UserError, suggest
from cifar_lit.files import discard_output
from cifar_lit.trust import RENAMED

HINT = " (--help lists all options)"
CLASSES = (*callbacks.__all__, *loggers.__all__, *profilers.__all__)
"""Those that an option may name without their package."""
BASES = {
    "callbacks": callbacks.Callback,
    "logger": loggers.Logger,
    "profiler": profilers.Profiler,
    "strategy": strategies.Strategy,
}
"""The options of the Trainer that name classes; others are plugins."""
A_CLASS = "the name of a class, or a mapping with its class_path and init_args"
GROUPS = {"model": "net", "data": "source", "checkpoint": "ckpt_path", "trainer": "max_epochs"}
"""What somebody may mean who gives a group of options a value."""
TRUST_HELP = (
    "Let a run do more than hold data: import its own classes, use its paths and URLs. Only for runs you trust."
)


@contextlib.contextmanager
def naming_options(options: dict[str, str]) -> Iterator[None]:
    """Let a ``UserError`` call arguments by the options of the command line."""
    try:
        yield
    except UserError as error:
        error.options = {**options, **error.options}
        raise


def _refuse(message: str, options: Collection[str]) -> NoReturn:
    """Raise a ``UserError`` for a message of argparse, with a suggestion for an option that there is not."""
    if choice := re.fullmatch(r"argument (\S+?)(?:/\S+)?: invalid choice: (.*) \(choose from (.*)\)", message):
        message = f"{choice[1]} is {choice[2]}: must be one of {choice[3]}".replace("'", "")
    if value := re.fullmatch(r"argument (\S+?)(?:/\S+)?: invalid (\S+) value: (.*)", message):
        kinds = {"_boolean_type": "bool", "boolean": "bool", "number": "float", "count": "int"}
        message = f"{value[1]} is {value[3]}: must be {in_english([kinds.get(value[2], value[2])])}"
    word = _unknown(message)
    instead = instead_of(word) if "--recipe" in options and "--trust_run" in options else ""  # those of fit
    if instead:
        raise UserError(f"{word} is not an option of fit: {instead}")
    raise UserError(f"{message}{suggest_option(word, options) if word else ''}{HINT}")


def _unknown(message: str) -> str:
    """Return the first word that argparse did not recognise; empty for any other message."""
    return message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]


def _in_one_line(message: str, options: Sequence[str]) -> str:
    """Return a message of jsonargparse with the option as it is typed, and without its tree of types."""
    if text := _of_name(message, options):
        return text
    if not (found := re.match(r'Parser key "(.*?)":', message)):
        return message
    option = f"--{found[1]}"  # of a class: within its own parser
    if module := re.search(r"No module named '([\w.]+)'", message):
        return f"{option}: there is no module {module[1]}; is its folder in PYTHONPATH?"
    if "Errors:" not in message and (given := re.search(r"callable class: .*Got value: (.*)", message, re.DOTALL)):
        return f"{option} is {given[1]}: must be {A_CLASS}"
    if "Errors:" not in message and (single := re.search(r"Expected an? (.*)\. Got value: (.*)", message, re.DOTALL)):
        return f"{option} is {single[2]}: must be {in_english([single[1]])}"
    errors, _, value = message.partition("Given value type:")
    value = value.partition("Given value: ")[2].strip() or "''"
    reasons = dict.fromkeys(re.findall(r"^ *- (?!Expected a path but|Does not validate)(.*)$", errors, re.MULTILINE))
    named = next((reason.rpartition(":")[2].strip() for reason in reasons if "a dot import path" in reason), None)
    if named is not None:
        name = named or value
        return f"{option} is {name}: there is no such class{_suggest_class(name)}"
    others = [reason for reason in reasons if not reason.startswith("Expected a ")]
    if any("Not a valid subclass of" in reason for reason in others):
        return f"{option} is {value}: must be {A_CLASS}"
    if others:
        return f"{option}: {'; '.join(others)}{f' ({value})' if len(value) < 100 else ''}"
    if reasons:
        return f"{option} is {value}: must be {in_english(reasons)}"
    return f"{option}: {message.partition(':')[2].strip()}"


def _of_name(message: str, options: Sequence[str]) -> str:
    """Return a message about the name of an option, or about a file; empty for one about a value."""
    if found := re.fullmatch(r"Group '(.*?)' does not accept option '(.*?)'.*", message, re.DOTALL):
        name = RENAMED.get(found[2])
        hint = f"; it is --{found[1]}.{name} now" if name else suggest_option(f"--{found[1]}.{found[2]}", options)
        return f"there is no --{found[1]}.{found[2]}{hint}"
    is_of_class = "--trust_run" not in options  # a value that is a class has a parser of its own
    if found := re.fullmatch(r"Option '(.*?)' is not accepted", message):
        instead = "" if is_of_class else instead_of(f"--{found[1]}")
        hint = f": {instead}" if instead else suggest_option(f"--{found[1]}", options)
        return f"there is no --{found[1]}{'' if is_of_class else ', in a file either'}{hint}"
    if is_of_class and (found := re.fullmatch(r"the following arguments are required: (\w+).*", message)):
        return f"--{found[1]} has no default, and must be given"
    if found := re.match(r'(?:argument (\S+) --> .*?|Linked ".*" must be given via "(.*?)")[:.]', message):
        return f"--{found[1] or found[2]} is for the model, too: give that alone"
    if message.startswith("Unexpected config:"):
        return f"--config has no settings: must be a mapping, such as trainer: {{max_epochs: 3}}, and is{message[18:]}"
    if found := re.match(r'Parser key "(\w+)":\s+Unable to load config (.*)', message):
        hint = suggest_option(f"--{GROUPS.get(found[1], found[1])}", options)
        return f"--{found[1]} is {found[2]}: must be a file with its settings{hint}".replace("'", "")
    return ""


def _of_class(error: UserError, message: str) -> UserError:
    """Return an error of the parser of a class within this one, with its options as they are typed here."""
    key = re.match(r'Parser key "(.*?)":', message)
    if key is None or HINT not in str(error):
        return error
    return UserError(re.sub(r"--(?=\w)", f"--{key[1]}.", str(error).replace(HINT, "")) + HINT)


def _suggest_class(name: str) -> str:
    """Return ``; did you mean WandbLogger?`` for wandb; else a name that is close, or nothing."""
    same = next((known for known in CLASSES if len(name) > 2 and known.lower().startswith(name.lower())), None)
    return f"; did you mean {same}?" if same else suggest(name, CLASSES)


class Formatter(DefaultHelpFormatter):
    """jsonargparse's layout of ``--help``, which leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options, whose title may be a whole sentence."""
        super().start_section(heading and textwrap.fill(heading, 78))

    def _expand_help(self, action: argparse.Action) -> str:
        """Return the text of an option, with the types in English and without the classes that ``fit`` adds itself."""
        text = re.sub(r" cifar_lit\.(?!networks\.)[\w.]+,?", "", super()._expand_help(action))
        return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace(",)", ")")

    def _get_type_str(self, action: argparse.Action) -> str | None:
        kind = super()._get_type_str(action)
        return kind and kind_in_english(kind)


class FitParser(LightningArgumentParser):
    """Lightning's parser, with errors of one line and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=Formatter, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise _of_class(cause, message)
            cause = cause.__cause__ or cause.__context__
        options = list(self._option_string_actions)
        _refuse(_in_one_line(message.replace(HINT, ""), options), options)  # perhaps of a parser within this one


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
        self.reads_run = "RUN" in arguments

    def error(self, message: str) -> NoReturn:
        word = _unknown(message)
        options = self._option_string_actions
        is_of_training = "." in word or (is_of_fit(word) and not suggest_option(word, options))
        if self.reads_run and is_of_training:
            message += "; a RUN has its own settings, and only some can be overridden"
        _refuse(message, options)

    def add_trust(self) -> None:
        """Add ``--trust_run``, for a command that reads a run."""
        self.add_argument("--trust_run", action="store_true", dest="trust", help=TRUST_HELP)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as Python does; a text that is empty, as that of an unset variable, is refused."""
        options, others = super().parse_known_args(expand_homes(sys.argv[1:] if args is None else args), namespace)
        for name, value in vars(options).items():
            option = f"--{name}" if f"--{name}" in self._option_string_actions else self.names.get(name, name)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and (not text.strip() or "\0" in text):
                    raise UserError(f"{option} is {text!r}: must have a value, without NUL")
        return options, others

    @property
    def names(self) -> dict[str, str]:
        return {**option_names(self._option_string_actions), "trust": "--trust_run"}


class _BuildError(BaseException):
    """An error of a constructor. No ``Exception``: jsonargparse would go on and try the other types of the option."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind


def build(kind: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return kind(*args, **kwargs)
    except Exception as error:
        raise _BuildError(kind) from error


@contextlib.contextmanager
def building(parser: LightningArgumentParser) -> Iterator[None]:
    """Let what a constructor raises come as it is; of a class of Lightning's it is about a value of an option."""
    parser.add_instantiator(build, object)
    try:
        yield
    except _BuildError as failed:
        error, kind = failed.__cause__, failed.kind
        assert error is not None
        if isinstance(error, UserError) or not kind.__module__.startswith("lightning."):
            raise error from error.__cause__
        option = next((name for name, base in BASES.items() if issubclass(kind, base)), "plugins")
        raise UserError(f"--trainer.{option}: {kind.__name__}: {str(error).replace('`', '')}") from error


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Treat it as no error if whoever reads the output has closed it, as ``head`` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)  # Python flushes it once more when it exits
