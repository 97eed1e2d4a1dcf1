"""What every network of the project is: a module that turns images into logits."""

from collections.abc import Callable

from torch import nn


class Network(nn.Module):
    """Maps images ``(N, 3, 32, 32)``, float32, to logits ``(N, num_classes)``.

    A subclass takes ``num_classes`` as its first argument and its own options as keyword-only arguments of
    plain types (numbers, strings, lists of these): they go into the checkpoint, from which the network is built
    again. Nothing but a subclass of this class is ever built from a name that stands in a checkpoint.
    """


NetworkFactory = Callable[[int], Network]
"""Builds a network for a number of classes: a ``Network`` class, or a ``functools.partial`` of one."""
