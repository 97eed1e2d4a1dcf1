"""The synthetic images: the same for the same seed, too hard for a linear classifier, easy for the network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifar_lit.data.augment import to_float
from cifar_lit.data.split import Split
from cifar_lit.data.synthetic import CLASSES, Synthetic
from cifar_lit.networks import TutorialCNN


def accuracy_after(net: nn.Module, train: Split, test: Split, *, lr: float, num_epochs: int) -> float:
    """Train with plain SGD and batches of 64; return the accuracy on test."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for epoch in range(num_epochs):
        generator = torch.Generator().manual_seed(epoch)
        for index in torch.split(torch.randperm(len(train.labels), generator=generator), 64):
            loss = F.cross_entropy(net(to_float(train.images[index].permute(0, 3, 1, 2))), train.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        return float((net(to_float(test.images.permute(0, 3, 1, 2))).argmax(1) == test.labels).float().mean())


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


def tutorial() -> nn.Module:
    torch.manual_seed(0)
    return TutorialCNN()


def test_the_same_seed_gives_the_same_images_and_another_one_others() -> None:
    first, again, other = (Synthetic(num_train=50, num_test=50, seed=seed) for seed in (1, 1, 2))
    for split in ("train", "test"):
        assert torch.equal(first.load(split).images, again.load(split).images)
        assert torch.equal(first.load(split).labels, again.load(split).labels)
    assert not torch.equal(first.load("train").images, other.load("train").images)
    assert not torch.equal(first.load("train").images, first.load("test").images)


def test_it_gives_ten_named_classes_evenly_and_fast() -> None:
    source = Synthetic()
    source.prepare()
    train = source.load("train")
    assert train.images.shape == (25_000, 32, 32, 3)
    assert train.images.is_contiguous()
    assert train.images.dtype == torch.uint8
    assert torch.bincount(train.labels).tolist() == [2_500] * 10
    assert len(source.classes) == len(set(CLASSES)) == 10
    assert source.title == "synthetic"
    assert not source.has_val


@pytest.mark.slow
def test_a_linear_classifier_stays_far_below_the_network() -> None:
    source = Synthetic(num_train=8_000, num_test=1_000)
    train, test = source.load("train"), source.load("test")
    assert accuracy_after(linear(), train, test, lr=0.01, num_epochs=3) < 0.6
    # There are fewer images than in full: a higher rate and one more epoch make up for the fewer steps.
    assert accuracy_after(tutorial(), train, test, lr=0.02, num_epochs=4) > 0.85


@pytest.mark.slow
def test_in_full_the_network_passes_90_percent_in_three_epochs_where_a_linear_one_stays_under_60() -> None:
    source = Synthetic()
    train, test = source.load("train"), source.load("test")
    assert max(accuracy_after(linear(), train, test, lr=lr, num_epochs=10) for lr in (0.001, 0.01)) < 0.6
    assert accuracy_after(tutorial(), train, test, lr=0.01, num_epochs=3) > 0.9
