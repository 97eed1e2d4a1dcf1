"""Test-time augmentation against its formula."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lit.networks.tta import TTA, tta_logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.GELU(), nn.Linear(16, 4))


def test_the_logits_are_the_weighted_mean_of_six_versions() -> None:
    net, images = network(), torch.rand(5, 3, 8, 8)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
    versions = [(images, 0.25), (padded[:, :, :8, :8], 0.125), (padded[:, :, 2:, 2:], 0.125)]
    expected = sum(weight * (net(version) + net(version.flip(3))) for version, weight in versions)
    assert torch.allclose(tta_logits(net, images, "mirror_shift"), torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("mode", get_args(TTA))
def test_logits_that_are_there_are_not_computed_again(mode: TTA) -> None:
    net, images, seen = network(), torch.rand(5, 3, 8, 8), []
    expected, plain = tta_logits(net, images, mode), net(images)
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert torch.equal(tta_logits(net, images, mode, plain=plain), expected)
    assert len(seen) == {"mirror": 1, "mirror_shift": 5, "mirror_shift_unsure": 5}[mode]
    assert not any(torch.equal(one, images) for one in seen)


def test_an_image_and_its_mirror_image_have_the_same_logits() -> None:
    net, images = network(), torch.rand(5, 3, 8, 8)
    logits = tta_logits(net, images, "mirror")
    assert torch.allclose(logits, tta_logits(net, images.flip(3), "mirror"), atol=1e-6)
    assert not torch.allclose(logits, net(images), atol=1e-3)


def test_further_versions_are_of_the_images_alone_whose_two_highest_probabilities_are_close() -> None:
    net, images = network(), torch.randn(60, 3, 8, 8)
    net[3].weight.data *= 8  # type: ignore[index]
    plain, averaged = net(images), tta_logits(net, images, "mirror_shift")
    first, second = plain.softmax(1).sort(descending=True).values.T[:2]
    unsure = first - second < 0.5
    assert 10 < int(unsure.sum()) < 50
    logits = tta_logits(net, images, "mirror_shift_unsure")
    assert torch.allclose(logits, torch.where(unsure[:, None], averaged, plain), atol=1e-6)
    alone = [tta_logits(net, image[None], "mirror_shift_unsure") for image in images]  # whatever the batch
    assert torch.allclose(logits, torch.cat(alone), atol=1e-6)
    sure, none = images[~unsure], images[:0]
    assert torch.equal(tta_logits(net, sure, "mirror_shift_unsure", plain=plain[~unsure]), plain[~unsure])
    assert tta_logits(net, none, "mirror_shift_unsure").shape == (0, 4)
