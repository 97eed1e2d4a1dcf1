"""Configuration files and values: UTF-8 whatever the locale, within limits, with ``~`` as the home folder."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Path as ConfigPath  # type: ignore[attr-defined]
from jsonargparse import get_loader, set_loader

from cifar_lit.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Of a configuration, with its aliases written out."""

_HOME = re.compile(r"(--[^\s=]+=)?(~[\w.-]*(/.*)?)", re.DOTALL)
_load_yaml = get_loader("yaml")
_read_text = ConfigPath.read_text


def expand_home(value: str) -> str:
    """Return a path, or an option with one (``--option=~/runs``), with the home folder in place of ``~``."""
    found = _HOME.fullmatch(value)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else value  # noqa: PTH111


def expand_homes(args: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with ``~`` expanded, as the shell does it for some of them."""
    return [expand_home(arg) for arg in args]


def read_config(path: Path) -> str:
    """Read a configuration file; what is not one is a ``UserError``."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no configuration: it is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is no configuration: it has more than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no configuration: it is not text in UTF-8") from error


def load_yaml(text: str) -> Any:
    """Return what a text in YAML says, with ``~`` expanded; one that is nested or repeated too much is refused."""
    if any(character in text for character in "\n[{&"):
        _check_size(text)
    return _with_homes(_load_yaml(text))


def _check_size(text: str) -> None:
    """Refuse a text of a few lines whose aliases stand for billions of values, before anything walks through them."""
    sizes: dict[str, float] = {}
    open_nodes: list[tuple[str | None, float]] = [(None, 0)]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor, size = getattr(event, "anchor", None), 0.0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(anchor), math.inf)  # infinite within the node that it stands for
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[str(anchor)] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[str(anchor)] = size
        open_nodes[-1] = (open_nodes[-1][0], open_nodes[-1][1] + size)
        if len(open_nodes) > MAX_DEPTH or open_nodes[-1][1] > MAX_VALUES:
            raise UserError(
                f"a configuration may have {MAX_VALUES:,} values, aliases written out, in {MAX_DEPTH} levels: give less"
            )


def _with_homes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_homes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_homes(item) for item in value]
    return expand_home(value) if isinstance(value, str) else value


def _read(path: ConfigPath) -> str:
    is_local = not (path.is_url or path.is_fsspec or str(path) == "-")
    return read_config(Path(path.absolute)) if is_local else _read_text(path)


def install_loader() -> None:
    """Let jsonargparse read files and values by the functions above: its own take the locale's encoding."""
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    ConfigPath.read_text = _read  # type: ignore[assignment,method-assign]
