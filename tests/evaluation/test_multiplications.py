"""Multiplications of a training, beside those counted by hand."""

from typing import Any

from cifar_lit import ImageClassifier
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.networks import ConvNet, TutorialCNN

CLASSES = [f"class{i}" for i in range(10)]


def test_the_tutorials_network() -> None:
    first = 32 * 32 * 32 * 3 * 25
    forward = first + 16 * 16 * 32 * 32 * 25 + 8 * 8 * 64 * 32 * 25 + 1024 * 64 + 64 * 10
    backward = 2 * forward - first  # there is no gradient of the images
    model = ImageClassifier(classes=CLASSES, net=TutorialCNN)
    assert count_multiplications(model, {(0, 32): 1000}, num_steps=16) == 1000 * (forward + backward)


def test_sizes_and_the_steps_of_muon() -> None:
    net: Any = {
        "class_path": "cifar_lit.networks.ConvNet",
        "init_args": {"widths": [8], "kernel_size": 3, "head": "pooled"},
    }
    model = ImageClassifier(classes=CLASSES, net=net, muon_lr=0.1)

    def images(size: int) -> int:
        return 2 * size * size * 8 * 27 + 3 * 8 * 10  # no gradient of the images

    # Three iterations for a matrix of 8 x 27: two products with 27 columns, and nine of 8 x 8 x 8.
    step = 2 * 8 * 27 * 8 + 9 * 8**3
    counted = count_multiplications(model, {(0, 16): 100, (1, 32): 40}, num_steps=7)
    assert counted == 100 * images(16) + 40 * images(32) + 7 * step
    assert isinstance(model.net, ConvNet)


def test_a_body_that_was_frozen_at_first_makes_no_number() -> None:
    model = ImageClassifier(classes=CLASSES, weights="some.pt", freeze_epochs=1)
    assert count_multiplications(model, {(0, 32): 1000}, num_steps=16) is None
