"""What the ``config.yaml`` beside a checkpoint does, beyond plain settings: that needs ``--trust_run``."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from lightning.pytorch import callbacks, loggers, profilers, strategies

from cifar_lit.datamodule import CACHE_DIR
from cifar_lit.errors import UserError
from cifar_lit.networks.finding import find_network, is_network
from cifar_lit.schema import is_inside, is_outside, parse_yaml, read_yaml

LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")
"""Lightning's loggers that send nothing to a server."""
PLAIN: dict[ModuleType, Collection[str]] = {
    **{module: module.__all__ for module in (callbacks, profilers, strategies)},
    loggers: LOCAL_LOGGERS,
}
"""Classes that a configuration may name, with arguments that are plain, too."""
UNUSED = ("data.root", "trainer.default_root_dir", "model.weights")
"""Paths: the first is only read, and a run that resumes does not use the others."""
TORCHVISION_NET = re.compile(r"(cifar_lit\.networks\.(torchvision_net\.)?)?TorchvisionNet")
MAX_SHOWN = 10
MAX_LENGTH = 1000
"""Characters of a text, which is parsed as YAML; that takes long if it has many brackets."""


def check_config_of_run(path: Path, given: Collection[str]) -> None:
    """Refuse a configuration that does more than resume with plain options, before anything in it is imported.

    ``given`` are the names of options on the command line: the paths that these replace are not used.
    """
    config = read_yaml(path)
    found = ["trust_run is set"] * bool(config.get("trust_run"))
    try:
        texts = list(_texts(config, ""))
        nets = [text for name, text in texts if name in ("model.net", "model.net.class_path")]
        is_torchvision = bool(nets) and all(map(TORCHVISION_NET.fullmatch, nets))
        for name, text in texts:
            if name in UNUSED or (is_torchvision and name == "model.net.weights"):
                continue
            action = _action(name, text, path.parent)
            if action and not (f"--{name}" in given and action.startswith(("asks", "writes"))):
                found.append(f"{re.sub('[^ -~]', '?', name):.100} {action}")
    except RecursionError as error:
        raise UserError(f"{path} is damaged: it is nested too deeply") from error
    if found:
        more = f"; and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        raise UserError(
            f"{path} does more than set plain options: {'; '.join(found[:MAX_SHOWN])}{more}. "
            "Give --trust_run if you trust where it comes from"
        )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield each text with its name, as jsonargparse reads it: it takes text for YAML, too."""
    if isinstance(value, str):
        try:
            parsed = parse_yaml(value)
        except yaml.YAMLError:
            parsed = None
        if value == "-" or not isinstance(parsed, dict | list):  # that is standard input, in place of a group
            yield name, value
            return
        value = parsed
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, name if key in ("init_args", "dict_kwargs") else f"{name}.{key}".strip(".+"))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part, name)


def _action(name: str, text: str, run: Path) -> str:
    """Return what a text would do beyond being a value; empty if nothing."""
    shown, key = repr(text[:200]), name.rpartition(".")[2]
    if len(text) > MAX_LENGTH or not text.isprintable():
        return f"has {len(text):,} characters, {shown:.40}..."
    if name.startswith("model.net") and key in ("net", "class_path"):
        return "" if _is_network(text) else f"imports {shown}"
    if key in ("class_path", "callbacks", "logger"):
        return "" if is_plain_class(text) else f"runs {shown}"
    if name == "data.mirror":
        return f"asks {shown} for the images"
    if name == "data.cache_dir":
        is_default = is_inside(text, Path(CACHE_DIR).expanduser())
        return "" if is_default or is_inside(text, Path()) else f"writes to {shown}"
    if name in ("trust_run", "trainer.model_registry", "trainer.plugins"):
        return f"is {shown}"
    if re.search(r"\w\.[^\W\d]", text):
        return f"imports {shown}"
    is_file = any(os.path.exists(file) and not os.path.isdir(file) for file in (text, run / text))  # noqa: PTH110, PTH112
    if is_file or text == "-":
        return f"reads {shown}"
    is_path = re.search("dir|path|root|uri|url|location", key) is not None
    is_path |= text.startswith(("~", "/", "\\")) or is_outside(text) or "$" in text or Path(text).is_absolute()
    return f"writes to {shown}" if is_path and ("$" in text or not is_inside(text, run)) else ""


def _is_network(class_path: str) -> bool:
    try:
        return is_network(find_network(f"cifar_lit.networks.{class_path}" if "." not in class_path else class_path))
    except UserError:
        return False


def is_plain_class(class_path: str) -> bool:
    """Return whether a class is one of ``PLAIN``, with or without its module."""
    module_name, _, name = class_path.rpartition(".")
    return any(
        name in names and (not module_name or f"{module_name}.".startswith(f"{module.__name__}."))
        for module, names in PLAIN.items()
    )


def given_options(args: Collection[str]) -> set[str]:
    """Return the names of the options on a command line."""
    return {arg.partition("=")[0] for arg in args if arg.startswith("--")}
