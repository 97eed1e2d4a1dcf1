"""The Lightning run is the tutorial's plain loop: same batches, same weights at the start, same losses and weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from cifar_lit.data.loader import BatchLoader
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from tests.helpers.trainers import quiet_trainer

NUM_STEPS = 40
# Ours keeps the channels last in memory, so the convolutions add the same products in another order: float32 sums then
# differ in their last bits (1e-7 of their size), and 40 steps of SGD pass that on without amplifying it much.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-5


class Losses(Callback):
    """Remembers the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))


def plain_loop(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Train as the tutorial does: forward, loss, zero_grad, backward, step."""
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for images, labels in batches:
        loss = loss_function(net(images.float() / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in, num_out in ((3, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(num_in, num_out, 5, padding=2), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))


def test_the_lightning_run_is_the_plain_loop() -> None:
    source = Synthetic(num_train=1_300, num_test=20, seed=7)
    data = CIFAR10DataModule(source="synthetic", val_size=0, seed=11)
    data.train = source.load("train")
    module = ImageClassifier(classes=data.classes)
    plain = plain_network()
    plain.load_state_dict(dict(zip(plain.state_dict(), module.net.state_dict().values(), strict=True)))

    start = [weights.clone() for weights in module.net.state_dict().values()]

    # The batches as our loader orders them: 21 an epoch, so that the 40 steps cross into the second one.
    loader = BatchLoader(*data.train, batch_size=64, shuffle=True, seed=11)
    batches = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches += list(loader)
    plain_losses = plain_loop(plain, batches[:NUM_STEPS])

    losses = Losses()
    quiet_trainer(max_steps=NUM_STEPS, limit_val_batches=0, callbacks=[losses]).fit(module, datamodule=data)

    assert len(losses.values) == NUM_STEPS
    assert max(abs(a - b) for a, b in zip(losses.values, plain_losses, strict=True)) < LOSS_TOLERANCE
    for ours, theirs in zip(module.net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert float((ours - theirs).abs().max()) < WEIGHT_TOLERANCE
    # The tolerance means something: the training moved the weights by far more.
    moved = [float((w - before).abs().max()) for w, before in zip(module.net.state_dict().values(), start, strict=True)]
    assert max(moved) > 100 * WEIGHT_TOLERANCE
