"""Configuration files and values: UTF-8 whatever the locale, within limits, with ``~`` as the home folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Path as ConfigPath  # type: ignore[attr-defined]
from jsonargparse import set_loader

from cifar_lit.schema import parse_yaml, read_utf8

_HOME = re.compile(r"(--[^\s=]+=)?(~[\w.-]*(/.*)?)", re.DOTALL)
_read_text = ConfigPath.read_text


def expand_home(value: str) -> str:
    """Return a path, or an option with one (``--option=~/runs``), with the home folder in place of ``~``."""
    found = _HOME.fullmatch(value)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else value  # noqa: PTH111


def expand_homes(args: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with ``~`` expanded, as the shell does it for some of them."""
    return [expand_home(arg) for arg in args]


def load_yaml(text: str) -> Any:
    """Return what a text in YAML says, with ``~`` expanded."""
    return _with_homes(parse_yaml(text))


def _with_homes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_homes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_homes(item) for item in value]
    return expand_home(value) if isinstance(value, str) else value


def _read(path: ConfigPath) -> str:
    is_local = not (path.is_url or path.is_fsspec or str(path) == "-")
    return read_utf8(Path(path.absolute)) if is_local else _read_text(path)


def install_loader() -> None:
    """Let jsonargparse read files and values by the functions above: its own take the locale's encoding."""
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    ConfigPath.read_text = _read  # type: ignore[assignment,method-assign]
