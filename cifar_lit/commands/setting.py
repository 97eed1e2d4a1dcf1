"""Options of ``fit`` under a name, and what they set."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_lit import networks
from cifar_lit.networks.finding import OURS, is_network
from cifar_lit.recipes import RECIPES
from cifar_lit.schema import parse_yaml, read_yaml


@dataclass(frozen=True)
class Setting:
    """Options of ``fit`` under a name, such as ``Setting("fast_lr20", ["--recipe", "fast", "--model.lr=20"])``."""

    name: str
    args: Sequence[str]

    @property
    def values(self) -> dict[str, Any]:
        """What the options set, by their names: those of files, too. A later one wins."""
        values: dict[str, Any] = {}
        args = [re.sub(r"^-c=?(?=.)", "--config=", "--config" if word == "-c" else word) for word in self.args]
        words = [part for word in args for part in word.split("=", 1)]
        for word, following in zip(words, [*words[1:], "--"], strict=True):
            if not word.startswith("--"):
                continue
            value = "true" if following.startswith("--") else following
            match word.removeprefix("--"):
                case "config":
                    values |= _flat(read_yaml(Path(value)))
                case "recipe" if value in RECIPES:
                    values |= _flat(read_yaml(RECIPES[value]))
                case name if name.endswith("+"):
                    values[name] = [*values.get(name, []), parse_yaml(value)]
                case name:
                    values[name] = parse_yaml(value)
        return _of_network({_full_name(name): value for name, value in values.items()})


def _full_name(name: str) -> str:
    """Return the one name of a setting of the network, which the command line shortens."""
    if name == "model.net":
        return "model.net.class_path"
    return re.sub(r"^model\.net\.(?!class_path|init_args)", "model.net.init_args.", name)


def _of_network(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the network named last does not take, as the options of the recipe's own; so does ``fit``."""
    module, _, name = str(values.get("model.net.class_path")).rpartition(".")
    net, own = vars(networks).get(name), "model.net.init_args."
    if not is_network(net) or not f"{module}.".startswith((".", f"{OURS}.")):  # one of the user's own
        return values
    taken = inspect.signature(net).parameters
    return {name: value for name, value in values.items() if not name.startswith(own) or name[len(own) :] in taken}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their names on the command line: ``{"model.lr": 0.1}``."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        values |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values
