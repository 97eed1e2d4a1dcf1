"""Options of ``fit`` under a name, and what they set."""

import functools
import inspect
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lit import networks
from cifar_lit.cli.start import recipe_of
from cifar_lit.networks.finding import digest_of_code, is_network, is_ours
from cifar_lit.recipes import RECIPES
from cifar_lit.schema import parse_yaml, read_yaml

NET, OF_NET, CODE = "model.net.class_path", "model.net.init_args.", "model.net (its file)"


@dataclass(frozen=True)
class Setting:
    """Options of ``fit`` under a name, such as ``Setting("fast_lr20", ["--recipe", "fast", "--model.lr=20"])``."""

    name: str
    args: Sequence[str]

    @property
    def values(self) -> dict[str, Any]:
        """What the options set, by their names: those of files, too.

        As in ``fit``, the last recipe comes first, wherever it stands, or else that of a file; then a later option
        wins. A network that is named later keeps those options of the one before that it takes. One that is not of
        ``cifar_lit.networks`` is not imported to find out, and keeps all.
        """
        values: dict[str, Any] = {}
        for name, value in self._given():
            if name == NET and value != values.get(NET):
                values = {key: old for key, old in values.items() if _takes(value, key)}
            values[name] = [*values.get(name, []), value] if name.endswith("+") else value
        return values

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The values, and a digest of the network's code if that is in the working folder, as it is when first asked.

        It may be edited while it is trained: what is imported stays what it was.
        """
        code = digest_of_code(str(self.values.get(NET)))
        return self.values | ({CODE: code} if code else {})

    @property
    def files(self) -> list[tuple[str, str]]:
        """The options that name a file of settings, and the file."""
        return [(name, value) for name, value in self._options() if _is_file(name, value)]

    def _given(self) -> Iterator[tuple[str, Any]]:
        """Yield each setting and its value, in the order in which ``fit`` takes them."""
        options = list(self._options())
        recipes = [value for name, value in options if name == "recipe"]
        of_files = [recipe for name, file in self.files if name == "config" and (recipe := recipe_of(file))]
        for recipe in (recipes or of_files)[-1:]:
            if recipe in RECIPES:
                yield from _settings("config", str(RECIPES[recipe]))
        for name, value in options:
            if name != "recipe" or value not in RECIPES:
                yield from _settings(name, value)

    def _options(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each option; a switch has the text true."""
        args = [re.sub(r"^-c=?(?=.)", "--config=", "--config" if word == "-c" else word) for word in self.args]
        words = [part for word in args for part in word.split("=", 1)]
        for word, following in itertools.pairwise([*words, "--"]):
            if word.startswith("--"):
                yield word.removeprefix("--"), "true" if following.startswith("--") else following


def holding_out(args: Sequence[str]) -> list[str]:
    """Return the option that holds out the usual number of images, if these hold out none: to be judged on."""
    return ["--data.val_size=null"] if Setting("", args).values.get("data.val_size") == 0 else []


def _settings(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """Yield the settings of an option by their full names."""
    is_file = _is_file(name, text)
    value = read_yaml(Path(text)) if is_file else parse_yaml(text)
    is_group = is_file or name in ("model", "data", "trainer") or name.startswith("model.net")
    content = {name: value}
    if is_group and isinstance(value, dict):
        content = _flat(value, "" if name == "config" else f"{name}.")
    yield from ((_full_name(key), part) for key, part in content.items())


def _is_file(name: str, text: str) -> bool:
    return name == "config" or (name == "model.net" and os.path.isfile(text))  # noqa: PTH113 (Path's may raise)


def _takes(net: Any, name: str) -> bool:
    """Return whether a setting is none of the network's, or one that the network takes."""
    path = str(net)
    kind = vars(networks).get(path.rpartition(".")[2]) if "." not in path or is_ours(path) else None
    if not name.startswith(OF_NET) or not is_network(kind):
        return True
    return name.removeprefix(OF_NET) in inspect.signature(kind).parameters


def _full_name(name: str) -> str:
    """Return the one name of a setting of the network, which the command line shortens."""
    if name == "model.net":
        return NET
    return re.sub(r"^model\.net\.(?!class_path|init_args)", OF_NET, name)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their names on the command line: ``{"model.lr": 0.1}``."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
