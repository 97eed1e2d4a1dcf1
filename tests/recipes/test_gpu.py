"""The recipes for a GPU: the rates of their source, and the multiplications that their headers state."""

import functools
import re

import pytest
import yaml

from cifar_lit.data.augment import size_of_epoch
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, StrongCNN
from cifar_lit.networks.fast import HEAD_STD
from cifar_lit.recipes import RECIPES

NUM_IMAGES = 50_000
PFLOP = 1e15 / 2  # multiplications: a product and a sum are two operations


def multiplications(recipe: str, net: type[FastCNN]) -> int:
    """Count those of a complete run on all training images of CIFAR-10."""
    content = yaml.safe_load(RECIPES[recipe].read_text())
    options, data, max_epochs = content["model"], content["data"], content["trainer"]["max_epochs"]
    described = options.pop("net")
    given = described if isinstance(described, dict) else {"class_path": described, "init_args": {}}
    assert given["class_path"] == net.__name__
    assert data["val_size"] == 0
    sizes = [size_of_epoch(data.get("image_sizes", [32]), epoch, max_epochs) for epoch in range(max_epochs)]
    assert sizes[-1] == 32
    model = ImageClassifier(classes=list("abcdefghij"), net=functools.partial(net, **given["init_args"]), **options)
    images = dict.fromkeys(enumerate(sizes), NUM_IMAGES)
    counted = count_multiplications(model, images, max_epochs * NUM_IMAGES // data["batch_size"])
    assert counted is not None
    return counted


@pytest.mark.parametrize(
    ("recipe", "net", "stated", "most"),
    [
        ("gpu94", FastCNN, 1.72e14, 0.35 * PFLOP),
        ("strong", StrongCNN, 1.48e15, 3.1 * PFLOP),  # of airbench96_faster.py
    ],
)
def test_a_run_has_the_multiplications_of_its_header(
    recipe: str, net: type[FastCNN], stated: float, most: float
) -> None:
    counted = multiplications(recipe, net)
    assert counted == pytest.approx(stated, rel=0.005)
    assert counted <= most
    header = re.sub(r"\n# ", " ", RECIPES[recipe].read_text())
    assert f"{stated:.3g}".replace("+", "") + " multiplications" in header


def test_gpu94_has_the_rates_of_its_source() -> None:
    content = yaml.safe_load(RECIPES["gpu94"].read_text())
    model, batch_size = content["model"], content["data"]["batch_size"]
    assert batch_size == 2000
    assert model["lr"] == pytest.approx(0.053 * batch_size)  # the losses of a batch are summed there
    assert model["lr"] * model["weight_decay"] == pytest.approx(2e-6 * batch_size, rel=0.01)
    assert pytest.approx(HEAD_STD**-2, rel=0.02) == 0.67 / 0.053
    assert (model["muon_lr"], model["muon_momentum"], model["momentum"]) == (0.24, 0.6, 0.85)
