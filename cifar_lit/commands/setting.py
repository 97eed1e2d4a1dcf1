"""Options of ``fit`` under a name, and what they set."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lit import networks
from cifar_lit.networks.finding import OURS, is_network
from cifar_lit.recipes import RECIPES
from cifar_lit.schema import parse_yaml, read_yaml

NET, OF_NET = "model.net.class_path", "model.net.init_args."


@dataclass(frozen=True)
class Setting:
    """Options of ``fit`` under a name, such as ``Setting("fast_lr20", ["--recipe", "fast", "--model.lr=20"])``."""

    name: str
    args: Sequence[str]

    @property
    def values(self) -> dict[str, Any]:
        """What the options set, by their names: those of files, too. A later one wins.

        What another network leaves of the options before it is what it takes, as in ``fit``; one that is no class of
        ``cifar_lit.networks`` is not imported for that, and leaves all.
        """
        values: dict[str, Any] = {}
        for name, value in self._given():
            if name == NET and value != values.get(NET):
                values = {key: old for key, old in values.items() if _takes(value, key)}
            values[name] = [*values.get(name, []), value] if name.endswith("+") else value
        return values

    def _given(self) -> Iterator[tuple[str, Any]]:
        """Yield each setting and its value, in order."""
        args = [re.sub(r"^-c=?(?=.)", "--config=", "--config" if word == "-c" else word) for word in self.args]
        words = [part for word in args for part in word.split("=", 1)]
        for word, following in zip(words, [*words[1:], "--"], strict=True):
            if not word.startswith("--"):
                continue
            value = "true" if following.startswith("--") else following
            match word.removeprefix("--"):
                case "config":
                    content = _flat(read_yaml(Path(value)))
                case "recipe" if value in RECIPES:
                    content = _flat(read_yaml(RECIPES[value]))
                case "model.net" if Path(value).is_file():
                    content = _flat(read_yaml(Path(value)), "model.net.")
                case name:
                    content = {name: parse_yaml(value)}
                    content = _flat(content) if name.startswith("model.net") else content
            pairs = [(_full_name(name), value) for name, value in content.items()]
            yield from sorted(pairs, key=lambda pair: pair[0] != NET)


def _takes(net: Any, name: str) -> bool:
    """Return whether a setting is none of the network's, or one that the network takes."""
    module, _, class_name = str(net).rpartition(".")
    kind = vars(networks).get(class_name)
    if not name.startswith(OF_NET) or not is_network(kind) or not f"{module}.".startswith((".", f"{OURS}.")):
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
