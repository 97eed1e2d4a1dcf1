"""The split of the training images: stratified, disjoint, a function of its seed."""

import pytest
import torch

from cifar_lit.data.split import Split, hold_out
from cifar_lit.errors import UserError


def numbered(counts: list[int]) -> Split:
    """Make a split whose images have their number in their first two bytes."""
    num_images = sum(counts)
    images = torch.zeros(num_images, 32, 32, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = (torch.arange(num_images) % 256).to(torch.uint8)
    images[:, 0, 0, 1] = (torch.arange(num_images) // 256).to(torch.uint8)
    return Split(images, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)))


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].int() + 256 * split.images[:, 0, 0, 1].int()).tolist()


@pytest.mark.parametrize(
    ("counts", "val_size", "expected"),
    [
        ([500] * 10, 500, [50] * 10),
        ([500] * 10, 0.1, [50] * 10),
        ([100, 200, 300], 60, [10, 20, 30]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([7, 2, 91], 10, [1, 0, 9]),
    ],
)
def test_the_split_is_stratified_and_disjoint(counts: list[int], val_size: float, expected: list[int]) -> None:
    split = numbered(counts)
    train, val = hold_out(split, val_size, seed=0)
    assert torch.bincount(val.labels, minlength=len(counts)).tolist() == expected
    assert sorted(numbers(train) + numbers(val)) == list(range(sum(counts)))
    for part in (train, val):  # images and labels stayed together, in their old order
        assert part.images.is_contiguous()
        assert numbers(part) == sorted(numbers(part))
        assert torch.equal(part.labels, split.labels[torch.tensor(numbers(part))])


def test_the_split_depends_on_its_own_seed_alone() -> None:
    split = numbered([200, 300])
    torch.manual_seed(1)
    first = numbers(hold_out(split, 50, seed=0)[1])
    torch.manual_seed(2)
    assert numbers(hold_out(split, 50, seed=0)[1]) == first
    assert numbers(hold_out(split, 50, seed=1)[1]) != first


@pytest.mark.parametrize(("counts", "val_size"), [([5, 5], 10), ([5, 5], 5000), ([50, 50], 0.001)])
def test_a_split_that_leaves_nothing_is_refused(counts: list[int], val_size: float) -> None:
    with pytest.raises(UserError, match=rf"`val_size` is {val_size}, and there are {sum(counts)} training"):
        hold_out(numbered(counts), val_size, seed=0)


def test_a_split_that_empties_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="leaves a class without training images"):
        hold_out(numbered([1, 99]), 60, seed=0)
