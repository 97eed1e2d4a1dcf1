"""The loader: its order, its shards, its batches."""

import pytest
import torch

from cifar_lit.loader import BatchLoader, epoch_order


def loader(num_images: int, *, batch_size: int = 8, shuffle: bool = True, rank: int = 0, world: int = 1) -> BatchLoader:
    labels = torch.arange(num_images)
    images = labels.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).to(torch.uint8)
    return BatchLoader(images, labels, batch_size=batch_size, shuffle=shuffle, seed=5, rank=rank, world_size=world)


def test_an_order_is_a_permutation_and_depends_on_seed_and_epoch_alone() -> None:
    order = epoch_order(1000, seed=1, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(99)
    assert torch.equal(order, epoch_order(1000, seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = epoch_order(1000, seed=seed, epoch=epoch)
        assert int((other == order).sum()) < 20  # about one in a thousand stays by chance


def test_an_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(10, seed=0, epoch=0).tolist() == [7, 0, 9, 2, 1, 3, 8, 4, 6, 5]


def test_drawing_an_order_leaves_the_global_chance_alone() -> None:
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
@pytest.mark.parametrize("num_images", [100, 98, 57, 8])
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
    assert len(seen) == len(set(seen)) > num_images - world


def test_two_ranks_with_half_the_batch_share_the_batches_of_one() -> None:
    whole = loader(64, batch_size=16).indices()
    halves = [loader(64, batch_size=8, rank=rank, world=2).indices() for rank in range(2)]
    for i, batch in enumerate(whole):
        assert sorted(torch.cat([halves[0][i], halves[1][i]]).tolist()) == sorted(batch.tolist())
