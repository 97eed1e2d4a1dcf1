"""The data module: the split, what is read when, what a batch becomes."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torchvision.transforms import ToTensor

from cifar_lit.augment import Augmentation
from cifar_lit.datamodule import CIFAR10DataModule, hold_out, to_float
from cifar_lit.loader import BatchLoader
from cifar_lit.module import ImageClassifier
from cifar_lit.sources import Split
from tests.conftest import tiny_files, write_files
from tests.networks.test_base import WideNet


def numbered(counts: list[int]) -> Split:
    """Make a split whose images are told apart by their first two bytes."""
    num_images = sum(counts)
    images = torch.zeros(num_images, 3, 32, 32, dtype=torch.uint8)
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
    for part in (train, val):  # images and labels stayed together
        assert torch.equal(part.labels, split.labels[torch.tensor(numbers(part))])


def test_a_split_of_images_with_their_channels_last_has_them_last() -> None:
    split = numbered([200, 300])
    images = split.images.contiguous(memory_format=torch.channels_last)
    for part, same in zip(hold_out(Split(images, split.labels), 50, seed=0), hold_out(split, 50, seed=0), strict=True):
        assert part.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(part.images, same.images)


def test_the_split_depends_on_its_own_seed_alone() -> None:
    split = numbered([200, 300])
    torch.manual_seed(1)
    first = numbers(hold_out(split, 50, seed=0)[1])
    torch.manual_seed(2)
    assert numbers(hold_out(split, 50, seed=0)[1]) == first
    assert numbers(hold_out(split, 50, seed=1)[1]) != first


@pytest.mark.parametrize(("counts", "val_size"), [([5, 5], 10), ([5, 5], 5000), ([50, 50], 0.001)])
def test_a_split_that_leaves_nothing_is_refused(counts: list[int], val_size: float) -> None:
    with pytest.raises(ValueError, match=rf"--data\.val_size is {val_size}, and there are {sum(counts)} training"):
        hold_out(numbered(counts), val_size, seed=0)


def test_a_split_that_empties_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match="a class would be left without training images"):
        hold_out(numbered([1, 99]), 60, seed=0)


def test_bytes_become_what_totensor_makes_of_them() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
    expected = torch.stack([ToTensor()(image.permute(1, 2, 0).numpy()) for image in images])
    result = to_float(images)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_converted_and_an_example_image_is_not(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0)
    images, labels = torch.full((2, 3, 32, 32), 51, dtype=torch.uint8), torch.tensor([0, 1])
    batch = data.on_after_batch_transfer((images, labels), 0)
    assert torch.equal(batch[0], torch.full((2, 3, 32, 32), 0.2))
    assert batch[1] is labels
    example = torch.zeros(64, 3, 32, 32)
    assert data.on_after_batch_transfer(example, 0) is example


def test_each_stage_reads_what_it_needs_and_fit_never_reads_test(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=16)
    read: list[str] = []
    load = data.source.load

    def recording(split: Any) -> Split:
        read.append(split)
        return load(split)

    data.source.load = recording  # type: ignore[method-assign]
    data.setup("fit")
    data.setup("validate")
    assert read == ["train"]
    assert [len(labels) for _, labels in data.train_dataloader()] == [16, 16, 16]
    val = data.val_dataloader()
    assert not isinstance(val, list)
    assert len(val.labels) == 12
    data.setup("test")
    data.setup("test")
    assert read == ["train", "test"]
    test = data.test_dataloader()
    assert len(test.labels) == 24
    assert not test.shuffle


def test_training_images_grow_with_the_epochs_and_others_keep_their_size(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=48, image_sizes=[16, 24])
    sizes: list[tuple[str, int]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            sizes.append(("train", batch[0].shape[-1]))

        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            sizes.append(("val", batch[0].shape[-1]))

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[Recorder()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(ImageClassifier(classes=data.classes, net=functools.partial(WideNet, width=3)), datamodule=data)
    assert sizes == [("train", 16), ("val", 32), ("train", 24), ("val", 32), ("train", 24), ("val", 32)]


def test_a_sample_of_the_images_is_spread_over_the_classes(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0, batch_size=8)
    data.setup("fit")
    assert data.train is not None
    sample = data.sample_images(6)
    assert sample.shape == (6, 3, 32, 32)
    assert torch.equal(sample[0], to_float(data.train.images)[0])
    assert torch.equal(sample[-1], to_float(data.train.images)[-1])
    assert len(data.sample_images(1000)) == 60


def test_augmentation_is_for_training_alone(tiny_root: Path) -> None:
    options: Any = {"crop_padding": 4, "flip": "random", "cutout": 8}
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=48, **options)
    data.setup("fit")
    data.setup("test")
    assert data.train_dataloader().augmentation == Augmentation(**options)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert isinstance(loader, BatchLoader)
        assert loader.augmentation == Augmentation()


def test_without_validation_there_is_no_validation_loader(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0, batch_size=8)
    data.setup("fit")
    assert not data.has_val
    assert data.val_dataloader() == []
    assert data.train is not None
    assert len(data.train.labels) == 60


def test_a_val_folder_takes_the_place_of_the_split(tmp_path: Path) -> None:
    files = tiny_files(6, 3)
    files |= {name.replace("test/", "val/"): content for name, content in files.items() if name.startswith("test")}
    data = CIFAR10DataModule(source="images", root=str(write_files(tmp_path / "own", files)), batch_size=4)
    data.setup("fit")
    assert data.has_val
    assert data.train is not None
    assert data.val is not None
    assert (len(data.train.labels), len(data.val.labels)) == (18, 9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 0}, "--data.batch_size is 0: give 1 or more"),
        ({"batch_size": -3}, "--data.batch_size is -3: give 1 or more"),
        ({"val_size": -1}, "--data.val_size is -1: give 0 or more"),
        ({"val_size": 1.5}, "--data.val_size is 1.5: give a whole number of images, or a fraction below 1"),
        ({"split_seed": -1}, "--data.split_seed is -1: give 0 or more"),
        ({"seed": -1}, "--seed_everything is -1: give 0 or more"),
        ({"crop_padding": -1}, "--data.crop_padding is -1: give 0 or more"),
        ({"crop_padding": 32}, "--data.crop_padding is 32: give less than 32, the size of the images"),
        ({"cutout": -2}, "--data.cutout is -2: give 0 or more"),
        ({"flip": "twice"}, "--data.flip is twice: give one of none, random, alternating"),
        ({"image_sizes": [16, 7]}, "--data.image_sizes is 7: give 8 or more"),
    ],
)
def test_an_argument_outside_its_range_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"):
        CIFAR10DataModule(source="synthetic", **options)


def test_a_batch_larger_than_the_data_is_refused(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=10, batch_size=51)
    with pytest.raises(ValueError, match=r"--data\.batch_size is 51, and there are 50 training images"):
        data.setup("fit")


def test_cifar10_is_the_default_and_nothing_is_read_or_downloaded_for_its_classes(tmp_path: Path) -> None:
    data = CIFAR10DataModule(root=str(tmp_path / "data"))
    assert data.classes[3] == "cat"
    assert data.source.title == "CIFAR-10"
    assert not (tmp_path / "data").exists()
