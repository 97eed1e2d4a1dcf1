"""The networks: one architecture per file, each named here so that ``--model.net NAME`` finds it."""

from cifar_lit.networks.base import Network, NetworkFactory
from cifar_lit.networks.tutorial import TutorialCNN

__all__ = ["Network", "NetworkFactory", "TutorialCNN"]
