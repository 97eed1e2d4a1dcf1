"""Files from elsewhere are data: read within limits, and checked before anything is built from them."""

import functools
import inspect
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader
from torch import Tensor

from cifar_lit.errors import UserError

MAX_BYTES = 1 << 26
"""Of a JSON file; ``results.json`` of 1,000 classes has about a tenth of it."""
MAX_YAML_BYTES = 1 << 16
"""Of a configuration, which has about 3,000; a megabyte takes a minute to parse."""
MAX_VALUES = 10_000
"""Of a configuration, with its aliases written out."""
MAX_DEPTH = 20
MAX_LENGTH = 1000
"""Of a list or text among the settings."""
_SLACK = 1 << 20  # bytes that a tensor may claim without having them: a small one may be expanded

_load_yaml = get_loader("yaml")
Leaves = Iterator[tuple[str, Any]]


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of a limited size; anything else is a ``UserError``."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file")
    if status.st_size > max_bytes:
        raise UserError(f"{path} has {status.st_size:,} bytes: at most {max_bytes:,} are read")
    return path.read_bytes()


def read_utf8(path: Path) -> str:
    """Return the text of a configuration; a file that is none is a ``UserError``."""
    try:
        return read_bytes(path, max_bytes=MAX_YAML_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no configuration: it is not text in UTF-8") from error


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML says, as jsonargparse reads it; else ``yaml.YAMLError``.

    A text that is nested or repeated too much is a ``UserError``.
    """
    try:
        if any(character in text for character in "\n[{&"):
            _check_size(text)
        return _load_yaml(text)
    except (UserError, yaml.YAMLError):
        raise
    except Exception as error:  # yaml's constructors raise half a dozen types for values that are none
        raise yaml.YAMLError(str(error)) from error


def _check_size(text: str) -> None:
    """Refuse a text of a few lines whose aliases stand for billions of values, before anything walks through them."""
    sizes: dict[str, float] = {}
    open_nodes: list[tuple[str | None, float]] = [(None, 0)]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor, size = getattr(event, "anchor", None), 0.0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
        elif isinstance(event, yaml.AliasEvent):
            is_within = any(anchor == above for above, _ in open_nodes)  # the node that it stands for
            size = math.inf if is_within else sizes.get(str(anchor), 0)  # of nothing: the loader refuses it
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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a configuration; a file that is none is a ``UserError``."""
    content = _read_any(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no settings")
    return content


def check_yaml(path: Path) -> None:
    """Refuse a file that is there and not YAML, by its name."""
    if path.is_file():
        _read_any(path)


def _read_any(path: Path) -> Any:
    text = read_utf8(path)
    try:
        return parse_yaml(text)
    except (UserError, yaml.YAMLError) as error:
        found = " ".join(str(error).replace(' in "<unicode string>",', " in").split())
        reason = error if isinstance(error, UserError) else f"it is not YAML ({found:.300})"
        raise UserError(f"{path} is damaged: {reason}") from error


def leaves(value: Any, name: str = "it", *, _above: tuple[int, ...] = (), _done: set[int] | None = None) -> Leaves:
    """Yield each value in nested containers, and each key, with the name of its mapping's key.

    Nesting without end is a ``ValueError``.
    """
    done = set() if _done is None else _done
    value = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(value, dict | list | tuple | set):
        yield name, value
        return
    if id(value) in _above or len(_above) > 2 * MAX_DEPTH:
        raise ValueError(f"{name} is nested too deeply")
    if id(value) in done:  # or a few nested lists could stand for any number of them
        return
    for key, part in value.items() if isinstance(value, dict) else ((name, part) for part in value):
        yield "a key", key
        yield from leaves(part, str(key)[:100], _above=(*_above, id(value)), _done=done)
    done.add(id(value))


def check_tensors(value: Any) -> None:
    """Raise a ``ValueError`` for a tensor that is not dense or has not the values that its shape claims."""
    for name, part in leaves(value):
        if not isinstance(part, Tensor):
            continue
        if part.layout != torch.strided or part.is_quantized or part.device.type != "cpu":
            raise ValueError(f"{name} is a sparse, quantised or empty (meta) tensor")
        if part.numel() * part.element_size() > part.untyped_storage().nbytes() + _SLACK:
            raise ValueError(f"{name} has the shape {tuple(part.shape)}, and not the values for it")


def is_outside(path: str) -> bool:
    """Return whether a path leads to another folder than the one it begins with, or to another machine."""
    return "://" in path or ".." in re.split(r"[/\\]", path)


def is_inside(path: str | Path, folder: Path) -> bool:
    """Return whether a path leads into a folder, through whatever links."""
    return Path(os.path.realpath(os.path.expanduser(path))).is_relative_to(folder.resolve())  # noqa: PTH111


@functools.cache
def _parser(kind: type, skip: tuple[str, ...]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(skip), fail_untyped=False)
    return parser


def check_arguments(kind: type, options: Mapping[str, Any], *, skip: tuple[str, ...], origin: object) -> dict[str, Any]:
    """Return arguments from a file, of the types that the signature of ``kind`` has; others are a ``UserError``.

    ``skip`` names arguments that are not checked here.
    """
    known = inspect.signature(kind).parameters
    if unknown := sorted(str(name) for name in options if name not in known):
        raise UserError(f"{origin} has settings that this version does not know: {', '.join(unknown)[:200]}")
    checked = {name: value for name, value in options.items() if name not in skip}
    for name, value in checked.items():
        if value is None and known[name].default is not None:  # jsonargparse takes it for "not given"
            raise UserError(f"{origin}: its {name} is null")
        if (
            isinstance(value, list | tuple | dict | set | str) and len(value) > MAX_LENGTH
        ):  # of which jsonargparse makes as many copies
            raise UserError(f"{origin}: its {name} has {len(value):,} parts: at most {MAX_LENGTH:,} are read")
    try:
        parsed = _parser(kind, skip).parse_object(checked)
    except (ArgumentError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = re.sub('Parser key "(.*?)"', r"its \1", " ".join(str(error).split()))
        raise UserError(f"{origin} has settings of another type: {reason[:200]}") from error
    return {name: parsed[name] if name in checked else value for name, value in options.items()}
