"""The split of the training images: by the hash of each image, disjoint, a function of its seed; fingerprints."""

import pytest
import torch

from cifar_lit.data.split import Split, check_state, fingerprint, hash_images, hold_out, hold_out_test, mix_classes
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


def names(split: Split) -> list[str]:
    return [f"class {label}" for label in range(int(split.labels.max()) + 1)]


def divide(
    split: Split, val_size: float | None, *, seed: int = 0, known: list[int] | None = None
) -> tuple[Split, Split]:
    """Divide a split into the images to train on and those held out."""
    is_val, _ = hold_out(hash_images(split.images, seed=seed), split.labels, val_size, names(split), known=known)
    return split.part(~is_val), split.part(is_val)


def shuffled(split: Split, *, seed: int = 0) -> Split:
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    return split.part(order)


@pytest.mark.parametrize(
    ("counts", "val_size", "expected"),
    [
        ([500] * 10, 500, [50] * 10),
        ([100, 200, 300], 60, [10, 20, 30]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([7, 2, 91], 10, [1, 0, 9]),
    ],
)
def test_a_number_is_stratified_and_disjoint(counts: list[int], val_size: int, expected: list[int]) -> None:
    split = numbered(counts)
    train, val = divide(split, val_size)
    assert torch.bincount(val.labels, minlength=len(counts)).tolist() == expected
    assert sorted(numbers(train) + numbers(val)) == list(range(sum(counts)))
    for part in (train, val):  # images and labels stayed together, in their old order
        assert part.images.is_contiguous()
        assert numbers(part) == sorted(numbers(part))
        assert torch.equal(part.labels, split.labels[torch.tensor(numbers(part))])


def test_a_fraction_holds_out_about_that_many_of_each_class() -> None:
    train, val = divide(numbered([2000, 1000]), 0.1)
    assert len(train.labels) + len(val.labels) == 3000
    for label, expected in enumerate((200, 100)):
        assert abs(int((val.labels == label).sum()) - expected) < 4 * (0.9 * expected) ** 0.5  # standard deviations


def test_images_that_are_added_removed_renamed_or_reordered_move_no_other_image_of_a_fraction() -> None:
    everything = numbered([150, 150])
    held_out = set(numbers(divide(everything, 0.2)[1]))
    for changed in (everything.part(torch.arange(300) % 7 > 0), shuffled(everything), everything.part(torch.arange(9))):
        assert set(numbers(divide(changed, 0.2)[1])) == held_out & set(numbers(changed))


def test_a_class_of_few_images_is_trained_and_validated() -> None:
    for share in (0.001, 0.999):
        train, val = divide(numbered([2, 3, 1, 40]), share)
        for part, number_of_single in ((train, 1), (val, 0)):
            counts = torch.bincount(part.labels, minlength=4).tolist()
            assert min(counts[0], counts[1], counts[3]) >= 1
            assert counts[2] == number_of_single  # a single image is trained on


@pytest.mark.parametrize("val_size", [0.3, 12])
def test_copies_of_an_image_are_never_separated(val_size: float) -> None:
    original = numbered([20, 20])
    copies = Split(torch.cat([original.images] * 3), torch.cat([original.labels] * 3))
    train, val = divide(copies, val_size)
    assert not set(numbers(train)) & set(numbers(val))
    assert len(val.labels) >= 12 or val_size < 1


def test_what_a_checkpoint_held_out_stays_held_out() -> None:
    everything = numbered([40, 60])
    few = everything.part(torch.arange(100) % 3 > 0)
    _, limits = hold_out(hash_images(few.images, seed=0), few.labels, 20, names(few))
    train_before, val_before = divide(few, 20)
    assert not set(numbers(divide(everything, 20)[1])) >= set(numbers(val_before))  # the quotas are others
    train, val = divide(everything, 20, known=limits)
    assert set(numbers(val)) >= set(numbers(val_before))
    assert set(numbers(train)) >= set(numbers(train_before))
    assert len(divide(everything, 20, known=[-1, -1])[1].labels) == 20  # limits that leave nothing are not kept


def test_the_split_depends_on_images_and_its_own_seed_alone() -> None:
    split = numbered([200, 300])
    for val_size in (50, 0.1):
        torch.manual_seed(1)
        first = numbers(divide(split, val_size)[1])
        torch.manual_seed(2)
        assert numbers(divide(split, val_size)[1]) == first
        assert sorted(numbers(divide(shuffled(split), val_size)[1])) == first
        assert numbers(divide(split, val_size, seed=1)[1]) != first


def test_a_split_is_the_same_on_every_machine() -> None:
    assert numbers(divide(numbered([20]), 3)[1]) == [0, 10, 18]


@pytest.mark.parametrize(("counts", "val_size"), [([5, 5], 10), ([5, 5], 5000), ([1, 1], 0.5)])
def test_a_split_that_leaves_nothing_is_refused(counts: list[int], val_size: float) -> None:
    with pytest.raises(UserError, match=rf"`val_size` is {val_size}, and there are {sum(counts)} training"):
        divide(numbered(counts), val_size)


def test_a_split_that_empties_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="leaves class 0 without training images, must be smaller"):
        divide(numbered([1, 99]), 60)


def test_a_tenth_is_stratified_and_has_some_of_each_class() -> None:
    ten_classes = numbered([500] * 10)
    assert numbers(divide(ten_classes, None)[1]) == numbers(divide(ten_classes, 500)[1])  # 5,000 of CIFAR-10
    for counts, expected in (([40] * 4, [4] * 4), ([2, 3, 1, 40], [1, 1, 0, 4]), ([2, 1], [1, 0])):
        assert torch.bincount(divide(numbered(counts), None)[1].labels, minlength=len(counts)).tolist() == expected
    copies = Split(torch.cat([numbered([2, 9]).images] * 2), numbered([2, 9]).labels.repeat(2))
    train, val = divide(copies, None)
    assert not set(numbers(train)) & set(numbers(val))
    assert set(val.labels.tolist()) == set(train.labels.tolist()) == {0, 1}
    with pytest.raises(
        UserError, match=r"are 2 training images, too few to hold some .*: add some, or set `val_size` to 0"
    ):
        divide(numbered([1, 1]), None)


def chosen_of(split: Split) -> set[int]:
    return set(numbers(split.part(hold_out_test(split, names(split)))))


def test_a_fifth_is_held_out_for_the_test_whatever_else_there_is() -> None:
    everything = numbered([600, 400])
    chosen = chosen_of(everything)
    assert abs(len(chosen) - 200) < 4 * (0.8 * 200) ** 0.5  # standard deviations
    assert sorted(chosen_of(numbered([20, 5]))) == [0, 2, 9, 10, 14, 17, 18, 24]  # on every machine
    for changed in (everything.part(torch.arange(1000) % 3 > 0), shuffled(everything)):
        assert chosen_of(changed) == chosen & set(numbers(changed))
    relabelled = Split(everything.images, 1 - everything.labels)  # the same picture in another class
    assert chosen_of(relabelled) == chosen
    train = everything.part(~hold_out_test(everything, names(everything)))
    share = len(divide(train, 0.1)[1].labels) / len(train.labels)
    assert 0.05 < share < 0.15  # validation is chosen by other hashes


def test_of_each_class_some_are_tested_and_some_trained_on() -> None:
    for number in range(2, 12):
        split = numbered([number] * 8)
        counts = torch.bincount(split.labels[hold_out_test(split, names(split))], minlength=8)
        assert 1 <= int(counts.min()) <= int(counts.max()) < number
    with pytest.raises(UserError, match="class 1 has one picture, or copies of one: add another"):
        hold_out_test(numbered([2, 1]), ["class 0", "class 1"])


def test_a_fingerprint_is_one_of_images_labels_and_classes() -> None:
    split = numbered([4, 4])

    def take(split: Split, classes: tuple[str, str] = ("a", "b"), *, ordered: bool = False) -> str:
        return fingerprint(hash_images(split.images, seed=0), split.labels, classes, ordered=ordered)

    first = take(split)
    assert first.startswith("8 images, hash ")
    assert take(shuffled(split)) == first
    assert take(shuffled(split), ordered=True) != take(split, ordered=True)
    relabelled = Split(split.images, split.labels.flip(0))
    retouched = Split(split.images.clone(), split.labels)
    retouched.images[3, 31, 31, 2] ^= 1
    others = {take(relabelled), take(retouched), take(split.part(split.labels == 0)), take(split, ("a", "c")), first}
    assert len(others) == 5


@pytest.mark.parametrize(
    "state",
    [
        {"limits": 3},
        {"limits": [1]},
        {"limits": [1, 2.0]},
        {"limits": [1, 2**63]},
        {"limits": [1, -2]},
        {"train": 3},
        {"val": "\x1b[2J"},
    ],
    ids=str,
)
def test_the_state_of_a_strangers_checkpoint_is_checked(state: dict[str, object]) -> None:
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        check_state(state, ["a", "b"])
    check_state({"limits": [-1, 5], "train": "1 images", "val": "2 images"}, ["a", "b"])
    check_state({}, ["a", "b"])


def test_images_that_lie_class_by_class_are_mixed_and_others_stay() -> None:
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 2, 2, 3).contiguous()
    by_class = Split(images, torch.arange(60) // 20)
    mixed = mix_classes(by_class, hash_images(images, seed=0))
    assert set(mixed.labels[:20].tolist()) == {0, 1, 2}
    order = mixed.images[:, 0, 0, 0].long()
    assert sorted(order.tolist()) == list(range(60))
    assert torch.equal(by_class.labels[order], mixed.labels)
    assert mix_classes(mixed, hash_images(mixed.images, seed=0)) is mixed
