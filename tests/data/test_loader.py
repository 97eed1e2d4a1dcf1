"""The loader: order, ranks, batches, augmentation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cifar_lit.data.augment import Augmentation, pad
from cifar_lit.data.loader import BatchLoader, check_batch
from cifar_lit.errors import UserError


def loader(num_images: int, *, batch_size: int = 8, shuffle: bool = True, rank: int = 0, world: int = 1) -> BatchLoader:
    labels = torch.arange(num_images)
    images = labels.view(-1, 1, 1, 1).expand(-1, 32, 32, 3).to(torch.uint8)
    return BatchLoader(images, labels, batch_size=batch_size, shuffle=shuffle, seed=5, rank=rank, world_size=world)


def order_of(num_images: int, *, seed: int, epoch: int) -> Tensor:
    images = torch.zeros(num_images, 1, 1, 3, dtype=torch.uint8)
    loader = BatchLoader(images, torch.arange(num_images), batch_size=num_images, shuffle=True, seed=seed)
    loader.set_epoch(epoch)
    (order,) = loader.indices()
    return order


def test_an_order_is_a_permutation_and_depends_on_seed_and_epoch_alone() -> None:
    order = order_of(1000, seed=1, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(99)
    assert torch.equal(order, order_of(1000, seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = order_of(1000, seed=seed, epoch=epoch)
        assert int((other == order).sum()) < 20  # on average, one is at the same position


def test_an_order_is_the_same_on_every_machine() -> None:
    assert order_of(10, seed=0, epoch=0).tolist() == [7, 0, 9, 2, 1, 3, 8, 4, 6, 5]


def test_an_order_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader(20))
    assert torch.equal(torch.rand(3), expected)


def test_images_and_labels_stay_together_and_each_comes_once() -> None:
    batches = list(loader(20))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    for images, labels in batches:
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        assert images.shape[1:] == (3, 32, 32)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(20))


def test_each_epoch_has_its_own_order_whatever_came_before() -> None:
    first = loader(50)
    first.sampler.set_epoch(0)
    list(first)
    first.sampler.set_epoch(3)
    fresh = loader(50)
    fresh.set_epoch(3)
    assert torch.equal(torch.cat(first.indices()), torch.cat(fresh.indices()))
    fresh.set_epoch(4)
    assert not torch.equal(torch.cat(first.indices()), torch.cat(fresh.indices()))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [100, 98, 57, 8, 2])
def test_evaluation_counts_each_image_exactly_once_over_the_ranks(world: int, num_images: int) -> None:
    shards = [loader(num_images, shuffle=False, rank=rank, world=world) for rank in range(world)]
    seen = [int(label) for shard in shards for _, labels in shard for label in labels]
    assert sorted(seen) == list(range(num_images))
    assert [len(shard) for shard in shards] == [len(shard.indices()) for shard in shards]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [100, 98, 57, 8])
def test_training_gives_each_rank_as_many_batches_and_no_image_twice(world: int, num_images: int) -> None:
    shards = [loader(num_images, rank=rank, world=world) for rank in range(world)]
    batches = [shard.indices() for shard in shards]
    assert {len(mine) for mine in batches} == {len(shards[0])}
    seen = torch.cat([index for mine in batches for index in mine]).tolist()
    assert len(seen) == len(set(seen)) > num_images - 2 * world


@pytest.mark.parametrize(
    ("num_images", "batch_size", "world", "lengths"),
    [
        (17, 8, 1, [8, 8]),  # BatchNorm cannot normalise a single image
        (18, 8, 1, [8, 8, 2]),
        (19, 8, 2, [8]),
        (20, 8, 2, [8, 2]),
        (1, 8, 1, [1]),  # there is no other batch
        (3, 8, 2, [2]),
        (3, 1, 1, [1, 1, 1]),
    ],
)
def test_a_last_batch_of_one_image_is_not_trained(
    num_images: int, batch_size: int, world: int, lengths: list[int]
) -> None:
    trained = loader(num_images, batch_size=batch_size, world=world)
    assert [len(labels) for _, labels in trained] == lengths
    assert len(trained) == len(lengths)
    evaluated = loader(num_images, batch_size=batch_size, shuffle=False)
    assert sum(len(labels) for _, labels in evaluated) == num_images


def test_two_ranks_with_half_the_batch_share_the_batches_of_one() -> None:
    whole = loader(64, batch_size=16).indices()
    halves = [loader(64, batch_size=8, rank=rank, world=2).indices() for rank in range(2)]
    for i, batch in enumerate(whole):
        assert sorted(torch.cat([halves[0][i], halves[1][i]]).tolist()) == sorted(batch.tolist())


def coloured(num_images: int, **options: Any) -> BatchLoader:
    """Make a loader of random images."""
    images = torch.randint(256, (num_images, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return BatchLoader(images, torch.arange(num_images), seed=5, **options)


def by_label(loader: BatchLoader) -> dict[int, Tensor]:
    return {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}


FULL = Augmentation(crop_padding=4, flip="alternating", cutout=6)


def test_what_is_done_to_an_image_depends_on_neither_batches_nor_ranks() -> None:
    expected = by_label(coloured(48, batch_size=48, shuffle=True, augmentation=FULL))
    assert by_label(coloured(48, batch_size=5, shuffle=True, augmentation=FULL)).keys() == expected.keys()
    for rank in range(3):
        shard = coloured(48, batch_size=4, shuffle=True, augmentation=FULL, rank=rank, world_size=3)
        for label, image in by_label(shard).items():
            assert torch.equal(image, expected[label])


def test_an_epoch_comes_again_exactly_and_the_next_one_is_another() -> None:
    loader = coloured(20, batch_size=8, shuffle=True, augmentation=FULL)
    loader.set_epoch(4)
    first = by_label(loader)
    loader.set_epoch(5)
    second = by_label(loader)
    fresh = coloured(20, batch_size=8, shuffle=True, augmentation=FULL)
    fresh.set_epoch(4)
    again = by_label(fresh)
    assert all(torch.equal(first[label], again[label]) for label in first)
    assert not any(torch.equal(first[label], second[label]) for label in first)


def test_each_iteration_of_a_plain_loop_is_the_next_epoch() -> None:
    loader, expected = (coloured(20, batch_size=8, shuffle=True, augmentation=FULL) for _ in range(2))
    for epoch in (0, 1, 2, 7, 8):
        if epoch == 7:
            loader.set_epoch(7)
        expected.set_epoch(epoch)
        for (images, labels), (same_images, same_labels) in zip(loader, expected, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)
    next(iter(loader))  # an iteration that is left early was one, too
    assert loader.epoch == 9


def test_a_crop_and_a_flip_are_a_part_of_the_reflected_image() -> None:
    plain = by_label(coloured(30, batch_size=10))
    crops = by_label(coloured(30, batch_size=10, augmentation=Augmentation(crop_padding=2, flip="random")))
    for label, image in crops.items():
        padded = F.pad(plain[label].float(), (2, 2, 2, 2), mode="reflect").byte()
        windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)  # (5, 5, 3, 32, 32)
        matches = [(windows == way).flatten(2).all(2).any() for way in (image, image.flip(2))]
        assert any(matches)


def test_one_iteration_starts_where_it_is_told_and_the_next_at_the_beginning() -> None:
    loader = coloured(50, batch_size=8, shuffle=True, augmentation=FULL)
    loader.set_epoch(2)
    expected = list(loader)
    loader.start_at(3)
    for skipped in (3, 0):
        loader.set_epoch(2)
        batches = list(loader)
        assert len(batches) == len(loader) - skipped == 7 - skipped
        for (images, labels), (same_images, same_labels) in zip(batches, expected[skipped:], strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)
    loader.start_at(len(loader))
    assert list(loader) == []


def test_indices_are_the_positions_of_the_images_in_a_batch() -> None:
    for shuffle in (False, True):
        for rank in range(3):
            loader = coloured(40, batch_size=4, shuffle=shuffle, rank=rank, world_size=3)
            for index, (images, labels) in zip(loader.indices(), loader, strict=True):
                assert torch.equal(images.permute(0, 2, 3, 1), loader.images[index])
                assert torch.equal(labels, index)


def test_a_hole_has_the_mean_colour() -> None:
    images = torch.full((3000, 32, 32, 3), 90, dtype=torch.uint8)
    images[1::2] = 30
    loader = BatchLoader(images, torch.arange(3000), batch_size=6, augmentation=Augmentation(cutout=5))
    batch, _ = next(iter(loader))
    holes = (batch == 60).all(1).flatten(1).sum(1)
    assert bool(((holes >= 9) & (holes <= 25)).all())


def test_batches_have_their_channels_last_and_leave_the_images_alone() -> None:
    images = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8)
    before = images.clone()
    for batch, _ in BatchLoader(images, torch.arange(8), batch_size=4, augmentation=FULL):
        assert batch.shape == (4, 3, 32, 32)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        batch.fill_(0)
    assert torch.equal(images, before)


def test_images_are_padded_a_batch_at_a_time_or_once_and_never_copied_on_a_cpu() -> None:
    images = torch.randint(256, (50, 32, 32, 3), dtype=torch.uint8)
    by_batch, once = (
        BatchLoader(images, torch.arange(50), batch_size=8, shuffle=True, augmentation=FULL) for _ in range(2)
    )
    assert by_batch.images is images
    once.images = pad(images, FULL.crop_padding)  # as on a GPU
    for (batch, labels), (same, same_labels) in zip(by_batch, once, strict=True):
        assert torch.equal(batch, same)
        assert torch.equal(labels, same_labels)


def test_a_batch_that_no_network_takes_is_refused() -> None:
    labels = torch.arange(4)
    uint8 = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for images in (uint8, uint8.float(), uint8.bfloat16() + 1.0, uint8.float() + 1.0005, uint8[:0].float()):
        assert check_batch((images, labels))[0] is images
    for images, expected in (
        (uint8.permute(0, 2, 3, 1), r"the shape \(4, 32, 32, 3\) in a batch: must be \(N, 3, height, width\)"),
        (uint8[0], r"the shape \(3, 32, 32\)"),
        (uint8.long(), "torch.int64: must be uint8, or floating point in"),
        (uint8.float() + 255, "values from 255 to 255: must be uint8"),
        (uint8.float() - 0.5, "values from -0.5 to -0.5"),
        (uint8.float() / 0, "values from nan to nan"),
    ):
        with pytest.raises(UserError, match=expected):
            check_batch((images, labels))
        assert check_batch((images, labels), 1)[0] is images  # once per epoch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_batches() -> None:
    on_cpu = by_label(coloured(40, batch_size=8, shuffle=True, augmentation=FULL))
    on_gpu = by_label(coloured(40, batch_size=8, shuffle=True, augmentation=FULL, device="cuda"))
    assert all(image.device.type == "cuda" and torch.equal(image.cpu(), on_cpu[i]) for i, image in on_gpu.items())
