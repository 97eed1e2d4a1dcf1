"""What every network of the project is, and how one is written down in a checkpoint and built again."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class Network(nn.Module):
    """Maps images ``(N, 3, 32, 32)``, float32, to logits ``(N, num_classes)``.

    A subclass takes ``num_classes`` as its first argument and its own options as keyword-only arguments of
    plain types (numbers, strings, lists of these): they go into the checkpoint, from which the network is built
    again. Nothing but a subclass of this class is ever built from a name that stands in a checkpoint; the module of
    that name is imported to find out, so a checkpoint can name only code that is installed already.
    """

    def prepare(self, images: Tensor) -> None:
        """Set what is computed from training images, once before training; most networks have nothing of the kind.

        Args:
            images: ``(n, 3, 32, 32)``, float32, normalised: some of the training images, the same on every rank.
        """


NetworkFactory = Callable[[int], Network]
"""Builds a network for a number of classes: a ``Network`` class, or a ``functools.partial`` of one."""


def describe_network(net: NetworkFactory | Mapping[str, Any]) -> dict[str, Any]:
    """Write down how a network is made, in plain values that a checkpoint can hold.

    Args:
        net: A ``Network`` class, a ``functools.partial`` of one, or such a description.

    Returns:
        ``{"class_path": "module.Class", "init_args": {...}}``, without the number of classes.

    Raises:
        ValueError: If no ``Network`` class can be found in ``net``.
    """
    if isinstance(net, Mapping):
        return {"class_path": str(net["class_path"]), "init_args": dict(net["init_args"])}
    parts = (net.func, *net.args) if isinstance(net, functools.partial) else (net,)
    # The command line's parser hands over a partial of its own instantiator, with the class among its arguments.
    for part in parts:
        if isinstance(part, type) and issubclass(part, Network):
            init_args = dict(net.keywords) if isinstance(net, functools.partial) else {}
            for name, value in init_args.items():
                if type(value) not in (bool, int, float, str, list, dict, type(None)):
                    raise ValueError(f"--model.net.{name} is {value!r}: give a plain number, string or list")
            return {"class_path": f"{part.__module__}.{part.__qualname__}", "init_args": init_args}
    raise ValueError(f"net is {net!r}: give a subclass of cifar_lit.networks.Network, or a functools.partial of one")


def build_network(spec: Mapping[str, Any], *, num_classes: int) -> Network:
    """Build a network from its description.

    Args:
        spec: What ``describe_network`` returns.
        num_classes: How many logits it gives.

    Returns:
        The network, with its initial weights.

    Raises:
        ValueError: If the description does not name a subclass of ``Network`` that can be imported.
    """
    module_name, _, class_name = spec["class_path"].rpartition(".")
    try:
        network_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the network {spec['class_path']} cannot be imported: {error}") from error
    if not (isinstance(network_class, type) and issubclass(network_class, Network)):
        raise ValueError(f"the network {spec['class_path']} is not a subclass of cifar_lit.networks.Network")
    return network_class(num_classes, **spec["init_args"])
