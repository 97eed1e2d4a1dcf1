"""The base class of all networks, and their description in a checkpoint."""

import contextlib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from cifar_lit.errors import UserError


class Network(nn.Module):
    """Base class: maps images ``(N, 3, 32, 32)``, float32, normalised, to logits ``(N, num_classes)``.

    A subclass takes ``num_classes`` as its first argument, and its own options as keyword-only arguments of plain types
    (numbers, strings, lists of these). The options are saved in the checkpoint, and the network is built from them
    again. Only subclasses of ``Network`` are built from a class name in a checkpoint.
    """

    def prepare(self, images: Tensor) -> None:
        """Initialise from training images, once before training (data-dependent initialisation); by default nothing.

        The images are ``(n, 3, 32, 32)``, float32, normalised; the same on every rank.
        """


NetworkFactory = Callable[[int], Network]
"""Builds a network for a number of classes: a ``Network`` class, or a ``functools.partial`` of one."""


def describe_network(net: NetworkFactory | Mapping[str, Any]) -> dict[str, Any]:
    """Return how a network is built: ``{"class_path": "module.Class", "init_args": {...}}``, without ``num_classes``.

    ``net`` is a ``Network`` class, a ``functools.partial`` of one, or such a description. The options are plain values,
    which a checkpoint can hold; anything else is a ``UserError``.
    """
    match net:
        case {"class_path": str() as class_path, "init_args": {**init_args}}:
            return {"class_path": class_path, "init_args": init_args}
    parts: list[Any] = [net]
    options: dict[str, Any] = {}
    if isinstance(net, functools.partial):
        # jsonargparse passes a partial of its own instantiator, with the class among the arguments.
        parts, options = [net.func, *net.args], net.keywords
    classes = [part for part in parts if isinstance(part, type) and issubclass(part, Network)]
    if not classes:
        raise UserError(f"`net` is {net!r:.200}: must be a subclass of cifar_lit.networks.Network, or a partial of one")
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    for name, value in options.items():
        if type(value) not in (bool, int, float, str, list, dict, type(None)):
            raise UserError(f"`net`: its {name} is {value!r}: must be a plain number, string or list")
    return {"class_path": f"{classes[0].__module__}.{classes[0].__qualname__}", "init_args": options}


def import_network(class_path: str) -> None:
    """Import the module of a network from elsewhere, which runs code: only for a file that the user trusts."""
    module_name = class_path.rpartition(".")[0]
    try:
        importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"the network {class_path} cannot be imported: {error}") from error


def is_ours(class_path: str) -> bool:
    """Return whether a network of this name is one of this project's."""
    return f"{class_path.rpartition('.')[0]}.".startswith("cifar_lit.networks.")


def needed_trust(net: nn.Module) -> str:
    """Return the option that commands need to read a run of this network, as the end of a command line."""
    return "" if is_ours(f"{type(net).__module__}.{type(net).__qualname__}") else " --trust_run"


def find_network(class_path: str) -> object:
    """Return the object of this name if that imports nothing from elsewhere; else a ``UserError``."""
    module_name, _, class_name = class_path.rpartition(".")
    if not re.fullmatch(r"\w+(\.\w+)+", class_path):
        raise UserError(f"the network {class_path!r:.200} cannot be imported: must be module.Class")
    if is_ours(class_path):
        import_network(class_path)
    elif module_name not in sys.modules:
        raise UserError(
            f"the network {class_path:.200} is of another package: give `trust`, if you trust this file, "
            f"or import {module_name:.200} first"
        )
    return vars(sys.modules[module_name]).get(class_name)


def build_network(spec: Mapping[str, Any], *, num_classes: int) -> Network:
    """Build a network, with its initial weights, from what ``describe_network`` returns.

    A class or options that do not exist are a ``UserError``. So is a class of another package that is not imported: the
    description may come from anywhere. Errors raised in the network's own code pass through.
    """
    class_path, options = spec["class_path"], spec["init_args"]
    network_class = find_network(class_path)
    if not (isinstance(network_class, type) and issubclass(network_class, Network)):
        raise UserError(f"the network {class_path} is not a subclass of cifar_lit.networks.Network")
    try:
        inspect.signature(network_class).bind(num_classes, **options)
    except TypeError as error:
        raise UserError(f"`net`: wrong options for {network_class.__name__}: {error}") from error
    return network_class(num_classes, **options)


def check_logits(logits: Any, net: nn.Module, num_images: int, num_classes: int) -> None:
    """Raise a ``UserError`` unless a network gives one logit for each image and class."""
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if given != (num_images, num_classes):
        name = type(net).__name__
        raise UserError(f"`net`: {name} gives {given} for {num_images} images: must give {(num_images, num_classes)}")


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each part back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
