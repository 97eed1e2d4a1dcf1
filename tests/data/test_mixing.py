"""Erasing, MixUp and CutMix, and the loss for mixed labels, against their formulas."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifar_lit.data.augment import Augmentation, AugmentParams
from cifar_lit.data.loader import BatchLoader
from cifar_lit.data.mixing import hard_labels, in_boxes, mean_cross_entropy, mix, sample_erased, sample_mixing

PLAIN = Augmentation(crop_padding=4, flip="alternating", cutout=6)
COLOURS = replace(PLAIN, trivial_augment=True, brightness=0.4, contrast=0.3, saturation=0.2, erasing=0.5)
ALL = replace(COLOURS, mixup=0.5, cutmix=1.0)


def random_images(num_images: int, size: int = 32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), dtype=np.uint8))


def make_loader(augmentation: Augmentation, *, batch_size: int = 8, rank: int = 0, world_size: int = 1) -> BatchLoader:
    options: Any = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    labels = torch.arange(48)  # each image has a class of its own
    return BatchLoader(random_images(48), labels, shuffle=True, seed=5, augmentation=augmentation, **options)


def test_in_a_box_are_the_pixels_from_top_and_left_to_before_bottom_and_right() -> None:
    (inside, empty) = in_boxes(torch.tensor([[1, 0, 3, 2], [4, 2, 4, 5]]), 5)[..., 0]
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:3, 0:2] = True
    assert torch.equal(inside, expected)
    assert not empty.any()


def test_each_image_is_mixed_by_the_formula_of_its_paper_and_its_share_is_that_of_its_pixels() -> None:
    images, others = random_images(3), random_images(6)[3:]
    mixing = torch.tensor([[0, 0, 0, 0, 0.3183], [4, 20, 16, 32, 1], [0, 0, 32, 32, 1]])
    mixed, shares = mix(images, others, mixing)
    assert torch.equal(mixed[0], (0.3183 * images[0].double() + 0.6817 * others[0].double()).round().byte())
    expected = images[1].clone()
    expected[4:16, 20:32] = others[1, 4:16, 20:32]
    assert torch.equal(mixed[1], expected)
    assert torch.equal(mixed[2], others[2])
    assert shares[:, 0].tolist() == pytest.approx([0.3183, 1 - 12 * 12 / 1024, 0.0])


def test_mixup_alone_has_shares_of_the_beta_distribution_and_cutmix_alone_has_areas_of_it() -> None:
    others, mixing = sample_mixing(20_000, 32, 0.2, 0.0, 1)
    assert torch.equal(others.sort().values, torch.arange(20_000))
    assert not mixing[:, :2].equal(mixing[:, :2].new_zeros(20_000, 2))
    assert torch.equal(mixing[:, :2], mixing[:, 2:4])  # all boxes are empty
    share = mixing[:, 4]
    assert (float(share.mean()), float(share.var())) == pytest.approx((0.5, 0.25 / 1.4), abs=0.01)
    _, mixing = sample_mixing(20_000, 32, 0.0, 1.0, 1)
    assert mixing[:, 4].eq(1).all()
    top, left, bottom, right = mixing[:, :4].T
    assert bool(((top >= 0) & (left >= 0) & (bottom <= 32) & (right <= 32) & (top <= bottom) & (left <= right)).all())
    # Of a share uniform in [0, 1], the box has a mean area of half of the image, less what the edge clips.
    side = 16 * np.sqrt(1 - np.random.default_rng(2).random(20_000))
    centre = np.random.default_rng(3).integers(32, size=(2, 20_000))
    low, high = (centre - side.astype(int)).clip(0, 32), (centre + side.astype(int)).clip(0, 32)
    areas = ((bottom - top) * (right - left)).numpy()
    assert areas.mean() == pytest.approx((high - low).prod(0).mean(), rel=0.02)
    _, mixing = sample_mixing(20_000, 32, 0.2, 1.0, 1)
    assert float((mixing[:, 4] == 1).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_the_extreme_alphas_have_shares_from_0_to_1(alpha: float) -> None:
    share = sample_mixing(5000, 32, alpha, 0.0, 7)[1][:, 4]
    assert bool(((share >= 0) & (share <= 1)).all())
    assert float((share - 0.5).abs().mean()) == pytest.approx(0.5 if alpha < 1 else 0.028, rel=0.1)


def test_an_erased_box_has_the_areas_and_ratios_of_torchvision_and_lies_in_the_image() -> None:
    top, left, bottom, right = sample_erased(20_000, 64, 0.4, torch.Generator().manual_seed(0)).T
    height, width = bottom - top, right - left
    is_erased = height > 0
    assert float(is_erased.float().mean()) == pytest.approx(0.4, abs=0.02)
    assert bool(((top >= 0) & (left >= 0) & (bottom <= 64) & (right <= 64)).all())
    assert int(bottom.max()) == int(right.max()) == 64
    area = (height * width)[is_erased] / 64**2
    assert (float(area.mean()), float(area.max())) == pytest.approx((0.175, 0.33), abs=0.02)
    ratio = (height / width)[is_erased].log()
    assert float(ratio.mean()) == pytest.approx(0.0, abs=0.02)
    assert (float(ratio.min()), float(ratio.max())) == pytest.approx((math.log(0.3), math.log(3.3)), abs=0.3)


def test_what_is_erased_has_the_mean_colour_and_the_rest_is_as_it_was() -> None:
    images = random_images(48)
    loader = BatchLoader(images, torch.arange(48), batch_size=48, seed=5, augmentation=Augmentation(erasing=1.0))
    ((batch, _),) = list(loader)
    boxes = loader.augmentation.sample(48, 32, seed=5, epoch=0).boxes
    colour = images.double().mean((0, 1, 2)).round().byte()
    assert boxes is not None
    for image, result, (top, left, bottom, right) in zip(images, batch, boxes.tolist(), strict=True):
        expected = image.clone()
        expected[top:bottom, left:right] = colour
        assert torch.equal(result.permute(1, 2, 0), expected)


def test_parameters_depend_on_seed_and_epoch_alone_and_none_on_another_option() -> None:
    params = ALL.sample(500, 32, seed=1, epoch=2)
    again = ALL.sample(500, 32, seed=1, epoch=2)
    others = [ALL.sample(500, 32, seed=seed, epoch=epoch) for seed, epoch in ((1, 3), (2, 2))]
    for name, part in params._asdict().items():
        assert torch.equal(part, getattr(again, name))
        assert not any(torch.equal(part, getattr(other, name)) for other in others)
        assert torch.equal(part[:7], getattr(params.at(torch.arange(7)), name))
    before = PLAIN.sample(500, 32, seed=1, epoch=2)
    for same, part in zip(before[:3], params, strict=False):
        assert same is not None
        assert part is not None
        assert torch.equal(same, part)
    alone = {"operations": {"trivial_augment": True}, "factors": {"contrast": 0.3}, "boxes": {"erasing": 0.5}}
    for name, options in alone.items():
        part = getattr(Augmentation(**options).sample(500, 32, seed=1, epoch=2), name)  # type: ignore[arg-type]
        columns = [1] if name == "factors" else range(part.shape[1])
        assert torch.equal(part[:, columns], getattr(params, name)[:, columns])


def test_without_the_new_options_nothing_more_is_sampled() -> None:
    assert PLAIN.sample(10, 32, seed=0, epoch=0)[3:] == (None,) * (len(AugmentParams._fields) - 3)


def by_image(loader: BatchLoader) -> dict[int, tuple[Tensor, Tensor]]:
    batches = list(loader)
    return {
        index: (image, label)
        for indices, (images, labels) in zip(loader.indices(), batches, strict=True)
        for index, image, label in zip(indices.tolist(), images, labels, strict=True)
    }


def test_what_is_mixed_depends_on_neither_batches_nor_ranks() -> None:
    expected = by_image(make_loader(ALL, batch_size=48))
    loaders = [make_loader(ALL, batch_size=5), *(make_loader(ALL, rank=rank, world_size=3) for rank in range(3))]
    for loader in loaders:
        found = by_image(loader)
        for index, (image, label) in found.items():
            assert torch.equal(image, expected[index][0])
            assert torch.equal(label, expected[index][1])
    assert sum(len(by_image(loader)) for loader in loaders[1:]) == 48


def test_an_epoch_that_begins_in_its_middle_has_the_same_batches() -> None:
    loader, again = make_loader(ALL), make_loader(ALL)
    loader.set_epoch(3)
    expected = list(loader)
    again.set_epoch(3)
    again.start_at(2)
    for (images, labels), (same_images, same_labels) in zip(expected[2:], again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_the_labels_are_the_shares_of_the_pixels() -> None:
    how = Augmentation(mixup=0.5, cutmix=1.0, flip="random")
    loader = make_loader(how)
    flipped = by_image(make_loader(Augmentation(flip="random")))
    params = how.sample(48, 32, seed=5, epoch=0)
    assert params.others is not None
    assert params.mixing is not None
    for index, (image, label) in by_image(loader).items():
        other, (*_, share) = int(params.others[index]), params.mixing[index].tolist()
        first, second = flipped[index][0].double(), flipped[other][0].double()  # mixed after all else
        assert image.dtype == torch.uint8
        assert float(label.sum()) == pytest.approx(1.0)
        if share < 1:
            assert torch.equal(image, (share * first + (1 - share) * second).round().byte())
        else:
            share = 1 - float(((image == second) & (image != first)).any(0).double().mean())
            assert float(label[index]) == pytest.approx(share, abs=0.01)  # some pixels are equal by chance
        assert float(label[list({index, other})].sum()) == pytest.approx(1.0)


def test_labels_have_as_many_classes_as_the_data_and_are_hard_without_mixing() -> None:
    images, labels = random_images(8), torch.arange(8) % 3
    for num_classes, expected in ((0, 3), (7, 7)):
        loader = BatchLoader(
            images, labels, batch_size=8, augmentation=Augmentation(mixup=1.0), num_classes=num_classes
        )
        assert next(iter(loader))[1].shape == (8, expected)
    ((_, plain),) = BatchLoader(images, labels, batch_size=8, augmentation=Augmentation(erasing=1.0), num_classes=7)
    assert torch.equal(plain, labels)


def test_hard_labels_are_the_largest_shares() -> None:
    labels = torch.tensor([2, 0, 1])
    assert hard_labels(labels) is labels
    assert torch.equal(hard_labels(F.one_hot(labels, 4) * 0.6 + 0.1), labels)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_loss_of_shares_of_1_is_that_of_labels_and_the_scale_of_weights_does_not_matter(
    label_smoothing: float,
) -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, weights = torch.arange(9) % 4, torch.tensor([1.0, 10, 3, 0.5], dtype=torch.float64)
    shares = F.one_hot(labels, 4).float()
    for given in (None, weights, 7 * weights):
        expected = F.cross_entropy(logits, labels, given, label_smoothing=label_smoothing)
        for target in (labels, shares, shares.bfloat16()):
            loss = mean_cross_entropy(logits, target, given, label_smoothing=label_smoothing)
            assert float(loss) == pytest.approx(float(expected))
    with torch.autocast("cpu", torch.bfloat16):  # in which a product of matrices has eight bits
        loss = mean_cross_entropy(logits.float(), labels, weights.float() / 7, label_smoothing=label_smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    mixed = 0.3 * shares.double() + 0.7 * shares.double().roll(1, 0)
    losses = -(mixed * weights * logits.log_softmax(1)).sum() / (mixed * weights).sum()
    assert float(mean_cross_entropy(logits, mixed, 7 * weights)) == pytest.approx(float(losses))
