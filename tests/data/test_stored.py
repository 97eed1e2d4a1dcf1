"""Images that are memory-mapped: the same as those in memory, in every batch; what does not fit on the disk."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cifar_lit.data import stored
from cifar_lit.data.decoding import fit_image
from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.data.loader import BatchLoader
from cifar_lit.data.stored import StoredImages, fits, resized, room_for, select
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.machine import free_memory

SMALL = torch.arange(5 * 32 * 32 * 3).view(5, 32, 32, 3).byte()


class Disk(NamedTuple):
    free: int


def content(root: Path, size: int) -> tuple[list[Tensor], dict[str, str], list[bool]]:
    """Return all batches of two epochs, the sampled images, the fingerprints, and whether images are mapped."""
    options: dict[str, Any] = {
        "crop_padding": 3,
        "flip": "alternating",
        "cutout": 9,
        "resize": "squash" if size == 32 else "crop",
    }
    data = CIFAR10DataModule(
        source="images", root=str(root), val_size=12, batch_size=7, image_size=size, cache_dir=f"cache{size}", **options
    )
    for stage in ("fit", "test"):
        data.setup(stage)
    loaders: list[BatchLoader] = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]  # type: ignore[list-item]
    loaders.append(BatchLoader(*data.train, batch_size=7, shuffle=True))  # type: ignore[misc]
    tensors = [part for loader in loaders for _ in range(2) for batch in loader for part in batch]
    is_mapped = [isinstance(loader.images, StoredImages) for loader in loaders]
    return [data.sample_images(30), *tensors], data.fingerprints, is_mapped


@pytest.mark.parametrize("size", [32, 40])
def test_memory_mapped_images_are_the_same_in_every_batch(
    size: int, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, fingerprints, is_mapped = content(tiny_root, size)
    assert not any(is_mapped)
    for path in Path(f"cache{size}").rglob("train*.pt"):
        path.unlink()  # so that one split is decoded into a file, and the other is read from the cache
    monkeypatch.setattr(stored, "free_memory", lambda _: 0)
    mapped, same, is_mapped = content(tiny_root, size)
    assert all(is_mapped)
    assert same == fingerprints
    assert len(mapped) == len(in_memory)
    assert all(torch.equal(one, other) for one, other in zip(mapped, in_memory, strict=True))
    assert all(path.suffix == ".pt" or path.name == ".lock" for path in Path(f"cache{size}").rglob("*.*"))


def test_each_size_has_its_entry_in_the_cache(tiny_root: Path) -> None:
    loaded = {size: ImageFolder(tiny_root, cache_dir=Path("cache"), image_size=size).load("train") for size in (32, 40)}
    names = {path.name for path in Path("cache").rglob("*.pt")}
    assert names == {"index.pt", "train.pt", "train-40-squash.pt"}
    assert isinstance(loaded[40].images, StoredImages)
    assert torch.equal(loaded[40].images.small, loaded[32].images)


def test_other_sources_are_resized_to_the_pixels_of_read_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for size in (24, 48):
        larger = resized(torch.from_numpy(images), size, Path("cache"))
        assert np.array_equal(
            larger[:].numpy(), np.stack([fit_image(Image.fromarray(image), size) for image in images])
        )
        assert np.array_equal(larger.small.numpy(), images)
    assert resized(larger, 48, Path("cache")) is larger


def test_selected_images_behave_like_a_tensor() -> None:
    images = StoredImages(SMALL, SMALL)
    index = torch.tensor([3, 0, 1])
    selected, expected = select(images, index), SMALL[index]
    assert selected.shape == expected.shape
    assert len(selected) == 3
    for one in (0, torch.tensor(1), slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])):
        assert torch.equal(selected[one], expected[one])
    assert torch.equal(select(selected, torch.tensor([False, True, True]))[:], expected[1:])
    assert torch.equal(selected.permute(0, 3, 1, 2), expected.permute(0, 3, 1, 2))


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_decoded(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk(100_000))
    monkeypatch.setattr("cifar_lit.data.image_folder.read_rgb", None)
    with pytest.raises(UserError, match=r"`cache_dir`: .* has 0\.00 GB free, and 60 images of 64x64 pixels need"):
        ImageFolder(tiny_root, cache_dir=Path("cache"), image_size=64).load("train")
    monkeypatch.setattr(stored, "free_memory", lambda _: 0)
    with pytest.raises(UserError, match=r"need 0\.00 GB there: give another folder"):
        room_for((1, 100, 100, 3), Path(), num_saved=3)


def test_what_fits_is_a_share_of_the_free_memory_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e6 < free_memory() < 1e14
    monkeypatch.setattr(stored, "free_memory", lambda _: 4 * SMALL.numel())
    assert fits(SMALL)
    assert fits(SMALL.shape)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not fits(SMALL)
