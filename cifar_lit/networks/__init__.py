"""Networks, one architecture per file. Those named here are found by ``--model.net NAME``."""

from cifar_lit.networks.base import (
    Network,
    NetworkFactory,
    build_network,
    check_logits,
    describe_network,
    evaluation_mode,
    lay_out,
)
from cifar_lit.networks.conv import ConvNet
from cifar_lit.networks.fast import FastCNN
from cifar_lit.networks.resnet import ResNet18
from cifar_lit.networks.strong import StrongCNN
from cifar_lit.networks.torchvision_net import TorchvisionNet
from cifar_lit.networks.tutorial import TutorialCNN
from cifar_lit.networks.wide_resnet import WideResNet

__all__ = [
    "ConvNet",
    "FastCNN",
    "Network",
    "NetworkFactory",
    "ResNet18",
    "StrongCNN",
    "TorchvisionNet",
    "TutorialCNN",
    "WideResNet",
    "build_network",
    "check_logits",
    "describe_network",
    "evaluation_mode",
    "lay_out",
]
