"""The networks: one architecture per file, each named here so that ``--model.net NAME`` finds it."""

from cifar_lit.networks.base import Network, NetworkFactory, build_network, describe_network
from cifar_lit.networks.fast import FastCNN
from cifar_lit.networks.strong import StrongCNN
from cifar_lit.networks.tutorial import TutorialCNN

__all__ = [
    "FastCNN",
    "Network",
    "NetworkFactory",
    "StrongCNN",
    "TutorialCNN",
    "build_network",
    "describe_network",
]
