"""The synthetic images: the same bytes everywhere, too hard for a linear classifier, easy for the network."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifar_lit.data.augment import to_float
from cifar_lit.data.split import Split
from cifar_lit.data.synthetic import _FIGURES, CLASSES, Array, Synthetic, _Plane
from cifar_lit.main import main

SHAPES = ["disc", "square", "triangle", "cross", "ring"]


def linear_accuracy(train: Split, test: Split, *, lr: float, num_epochs: int) -> float:
    """Train a linear classifier with momentum and batches of 64; return its accuracy on test."""
    torch.manual_seed(0)
    net = nn.Linear(3 * 32 * 32, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for epoch in range(num_epochs):
        generator = torch.Generator().manual_seed(epoch)
        for index in torch.split(torch.randperm(len(train.labels), generator=generator), 64):
            loss = F.cross_entropy(net(to_float(train.images[index]).flatten(1) - 0.5), train.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        return float((net(to_float(test.images).flatten(1) - 0.5).argmax(1) == test.labels).float().mean())


def figure(name: str, *, side: int = 1, mirrored: bool = False) -> Array:
    """Return the distance of each pixel to the edge of the largest figure, four pixels right of the middle, or left."""
    axis = np.arange(32, dtype=np.float32) - 15.5
    values = {"size": 10, "period": 8, "phase": 0, "side": side}
    options = {key: np.full((1, 1), value, np.float32) for key, value in values.items()}
    distance = _FIGURES[name](_Plane(axis[None] + (4 if mirrored else -4), axis[:, None], **options))
    return np.broadcast_to(distance, (32, 32))


def test_the_same_seed_gives_the_same_images_and_another_one_others() -> None:
    first, again, other = (Synthetic(num_train=50, num_test=50, seed=seed) for seed in (1, 1, 2))
    for split in ("train", "test"):
        assert torch.equal(first.load(split).images, again.load(split).images)
        assert torch.equal(first.load(split).labels, again.load(split).labels)
    assert not torch.equal(first.load("train").images, other.load("train").images)
    assert not torch.equal(first.load("train").images, first.load("test").images)


def test_each_machine_generates_the_same_bytes() -> None:
    train = Synthetic(num_train=500).load("train")
    content = train.images.numpy().tobytes() + train.labels.numpy().tobytes()
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == "b19e9af05114afdd51bab7ad259456a0"


def test_it_gives_ten_named_classes_evenly() -> None:
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


@pytest.mark.parametrize("name", CLASSES)
def test_a_mirrored_figure_is_one_of_the_same_class(name: str) -> None:
    mirrored = figure(name, side=-1, mirrored=True)
    assert np.abs(figure(name)[:, ::-1] - mirrored).max() < 1e-3


def test_a_mirror_makes_no_two_classes_alike() -> None:
    masks = {name: figure(name) > 0 for name in CLASSES}
    for name, mask in masks.items():
        others = [figure(other, mirrored=True) > 0 for other in CLASSES if other != name]
        assert min(float((mask[:, ::-1] != other).mean()) for other in others) > 0.03, name


@pytest.mark.parametrize("name", SHAPES)
def test_a_crop_leaves_most_of_a_shape(name: str) -> None:
    inside = figure(name) > 0
    for columns in (slice(4, None), slice(None, -4)):
        assert inside[4:-4, columns].sum() > 0.8 * inside.sum()


def test_each_figure_contrasts_with_its_background() -> None:
    images = Synthetic(num_train=1_000).load("train").images.float()
    spread = (images.amax((1, 2)) - images.amin((1, 2))).mean(1)  # over the pixels, then the mean of the channels
    assert float(spread.min()) > 40


def test_a_linear_classifier_stays_under_60_percent() -> None:
    source = Synthetic(num_train=4_000, num_test=1_000)
    assert 0.2 < linear_accuracy(source.load("train"), source.load("test"), lr=0.01, num_epochs=4) < 0.6


@pytest.mark.slow
def test_in_full_a_linear_classifier_stays_under_60_percent() -> None:
    train, test = Synthetic().load("train"), Synthetic().load("test")
    assert max(linear_accuracy(train, test, lr=lr, num_epochs=8) for lr in (0.003, 0.01)) < 0.6


@pytest.mark.slow
def test_the_first_command_ends_above_97_percent_with_no_class_under_90() -> None:
    assert main(["fit", "--recipe", "quick", "--no_report", "--trainer.accelerator", "cpu"]) == 0
    results = json.loads(Path("lightning_logs/version_0/results.json").read_text(encoding="utf-8"))
    assert results["source"] == "synthetic"
    assert results["Accuracy/test"] > 0.97
    assert min(results[f"ClassAccuracy/test/{name}"] for name in CLASSES) > 0.9
