"""Multiplications of a training: those of its convolutions and matrix products."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cifar_lit.module import ImageClassifier
from cifar_lit.networks import Network, build_network
from cifar_lit.optim import make_optimizer

NUM_IMAGES = 2
"""In the batch that is counted; a BatchNorm needs two."""


def count_multiplications(
    model: ImageClassifier, num_images: Mapping[tuple[int, int], int], num_steps: int
) -> int | None:
    """Count the multiplications of a training: forward, backward (without what is frozen) and optimizer steps.

    They are those of torch's direct convolutions and matrix products, read from the operations that a step calls; what
    acts on single elements is left out. What rests is not counted, also where several processes compute it. Nothing is
    computed.

    Args:
        model: The model that was trained.
        num_images: How many images of each epoch (from 0) and size (height and width) went through it.
        num_steps: How many steps the optimizer made.

    Returns:
        Their number; None for a size that is not known (0), for a body that was frozen in some of the epochs, and for a
        network that does not run on torch's meta device.
    """
    if not all(size for _, size in num_images) or model.hparams["freeze_epochs"]:
        return None
    try:
        return _count(model, num_images, num_steps)
    except Exception:  # of the network's own code, which may raise anything: the training is done, and is kept
        return None


def _count(model: ImageClassifier, num_images: Mapping[tuple[int, int], int], num_steps: int) -> int:
    net = build_network(model.hparams["net"], num_classes=len(model.classes), image_size=model.image_size)
    net = net.to("meta").train()
    for name, parameter in model.net.named_parameters():
        net.get_parameter(name).requires_grad_(parameter.requires_grad)
    names = ("lr", "momentum", "weight_decay", "nesterov", "muon_lr", "muon_momentum")
    optimizer = make_optimizer(net.parameters(), **{name: model.hparams[name] for name in names})
    groups: Counter[tuple[int, frozenset[nn.Parameter]]] = Counter()
    for (epoch, size), number in num_images.items():
        groups[size, frozenset(net.untrained(epoch) if isinstance(net, Network) else ())] += number
    total, trained = 0, [parameter for parameter in net.parameters() if parameter.requires_grad]
    for (size, resting), number in groups.items():
        for parameter in trained:
            parameter.requires_grad_(parameter not in resting)
        with FlopCounterMode(display=False) as counter:
            logits = net(torch.zeros(NUM_IMAGES, 3, size, size, device="meta"))
            F.cross_entropy(logits, torch.zeros(NUM_IMAGES, dtype=torch.int64, device="meta")).backward()  # type: ignore[no-untyped-call]
        total += counter.get_total_flops() // 2 * number // NUM_IMAGES  # a product and a sum are two operations
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return total + int(counter.get_total_flops()) // 2 * num_steps
