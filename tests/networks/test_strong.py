"""The strong network: the widths and depth of airbench96."""

import torch

from cifar_lit.networks import StrongCNN, build_network, describe_network
from cifar_lit.networks.winograd import Conv3x3


def test_it_has_the_layers_of_its_source() -> None:
    convs = [module for module in StrongCNN(10).modules() if isinstance(module, Conv3x3)]
    channels = [(conv.in_channels, conv.out_channels) for conv in convs]
    one, two, three = [(128, 128)] * 2, [(384, 384)] * 2, [(512, 512)] * 2
    assert channels == [(24, 128), *one, (128, 384), *two, (384, 512), *three]


def test_its_description_builds_it_again() -> None:
    net = build_network(describe_network(StrongCNN), num_classes=7)
    assert isinstance(net, StrongCNN)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)
