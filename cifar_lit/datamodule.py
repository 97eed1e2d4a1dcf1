"""The data module: a source, the split of train and validation, loaders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from cifar_lit.augment import Augmentation, Flip, resize
from cifar_lit.loader import BatchLoader
from cifar_lit.sources import Source, SourceName, Split, make_source

CACHE_DIR = "~/.cache/cifar_lit"
SIZE = 32


class CIFAR10DataModule(LightningDataModule):
    """Loads 32x32 colour images of a few classes into memory and cuts them into batches.

    The test images are read by ``test`` alone. A batch comes as uint8 and becomes float32 in [0, 1], channels last,
    after it was moved to the device.

    Args:
        source: cifar10 is the official archive, downloaded into root where it is missing; images is a folder or archive
            of pictures (train/CLASS/*, test/CLASS/* and perhaps val/CLASS/*); synthetic is made by code.
        root: For cifar10 the folder of the archive, for images the folder or archive of the pictures.
        mirror: For cifar10, a URL that is tried before the known ones.
        batch_size: Images in a training batch of one device.
        val_size: Training images that are held out for validation, by number or, below 1, as a fraction; 0 for none.
            A source with a val folder of its own uses that instead.
        split_seed: What the choice of these images is drawn from, apart from the run's seed.
        seed: What the order of the training images is drawn from. On the command line it is --seed_everything.
        cache_dir: For images, where what was decoded is kept.
        crop_padding: Pixels by which the sides of a training image are padded by reflection before a part of the old
            size is cut out, at a place drawn for each image and epoch; 0 for none.
        flip: Mirror training images: not, at random, or a random half of them in one epoch and the others in the next.
        cutout: Side in pixels of a square that is painted over in each training image; 0 for none.
        image_sizes: The height and width of training images in each epoch, the last of them also in all further ones;
            empty for 32 throughout. Smaller images are learned from faster.

    Raises:
        ValueError: If an argument is outside its range, or root cannot be a dataset.
    """

    def __init__(
        self,
        *,
        source: SourceName = "cifar10",
        root: str = "data",
        mirror: str | None = None,
        batch_size: int = 64,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str = CACHE_DIR,
        crop_padding: int = 0,
        flip: Flip = "none",
        cutout: int = 0,
        image_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        for name, value, lowest in (
            ("--data.batch_size", batch_size, 1),
            ("--data.val_size", val_size, 0),
            ("--data.split_seed", split_seed, 0),
            ("--seed_everything", seed, 0),
            ("--data.crop_padding", crop_padding, 0),
            ("--data.cutout", cutout, 0),
            ("--data.image_sizes", min(image_sizes, default=8), 8),
        ):
            if not value >= lowest:
                raise ValueError(f"{name} is {value}: give {lowest} or more")
        if crop_padding >= SIZE:
            raise ValueError(f"--data.crop_padding is {crop_padding}: give less than {SIZE}, the size of the images")
        if flip not in get_args(Flip):
            raise ValueError(f"--data.flip is {flip}: give one of {', '.join(get_args(Flip))}")
        if isinstance(val_size, float) and val_size >= 1:
            raise ValueError(f"--data.val_size is {val_size}: give a whole number of images, or a fraction below 1")
        # Plain types: a Path or one of numpy's scalars would make the checkpoint unreadable under weights_only.
        source_root = Path(root)
        root, cache_dir = os.path.abspath(os.path.expanduser(root)), str(cache_dir)  # noqa: PTH100, PTH111
        batch_size, split_seed, seed = int(batch_size), int(split_seed), int(seed)
        val_size = float(val_size) if isinstance(val_size, float) else int(val_size)
        crop_padding, flip, cutout = int(crop_padding), cast(Flip, str(flip)), int(cutout)
        image_sizes = [int(size) for size in image_sizes]
        self.save_hyperparameters()
        self.augmentation = Augmentation(crop_padding=crop_padding, flip=flip, cutout=cutout)
        self.source: Source = make_source(source, root=source_root, cache_dir=Path(cache_dir), mirror=mirror)
        self.train: Split | None = None
        self.val: Split | None = None
        self.test: Split | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels; known before anything is loaded."""
        return self.source.classes

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; known before anything is loaded."""
        return self.source.has_val or self.hparams["val_size"] > 0

    def prepare_data(self) -> None:
        """Download and extract, in one process of a machine."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Load what a stage needs, once.

        Args:
            stage: ``fit``, ``validate`` or ``test``.

        Raises:
            ValueError: If the split leaves a class without training images, or a batch is larger than what is left.
        """
        if stage == "test":
            self.test = self.test or self.source.load("test")
        elif self.train is None:
            self.train = self.source.load("train")
            if self.source.has_val:
                self.val = self.source.load("val")
            elif self.has_val:
                self.train, self.val = hold_out(self.train, self.hparams["val_size"], self.hparams["split_seed"])
            num_train = len(self.train.labels)
            if self.hparams["batch_size"] > num_train:
                raise ValueError(
                    f"--data.batch_size is {self.hparams['batch_size']}, and there are {num_train} training images: "
                    "give fewer"
                )

    def sample_images(self, num_images: int = 5000) -> Tensor:
        """Give some training images, in no particular order and always the same ones.

        Args:
            num_images: How many, at most.

        Returns:
            ``(n, 3, 32, 32)``, float32 in [0, 1].
        """
        assert self.train is not None
        num_train = len(self.train.labels)
        spread = torch.linspace(0, num_train - 1, min(num_images, num_train)).long()  # they may be sorted by class
        return to_float(self.train.images[spread])

    def train_dataloader(self) -> BatchLoader:
        """Give the training batches, in a new order for each epoch."""
        assert self.train is not None
        overfits = getattr(self.trainer, "overfit_batches", 0) > 0  # then the same few batches come in each epoch
        return self._loader(
            self.train, batch_size=self.hparams["batch_size"], shuffle=not overfits, augmentation=self.augmentation
        )

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Give the validation batches; an empty list where there is no validation."""
        return self._loader(self.val) if self.val else []

    def test_dataloader(self) -> BatchLoader:
        """Give the test batches."""
        assert self.test is not None
        return self._loader(self.test)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn the images of a batch, now on its device, into what the network takes.

        Args:
            batch: Images ``(N, 3, 32, 32)``, uint8, and labels ``(N,)``; anything else is left as it is.
            dataloader_idx: Not used.

        Returns:
            Images float32 in [0, 1], channels last in memory, and the labels.
        """
        if not isinstance(batch, tuple):
            return batch  # the summary's and the graph's example image
        images, labels = batch
        images = to_float(images)
        sizes = self.hparams["image_sizes"]
        if sizes and self.trainer and self.trainer.training:
            images = resize(images, sizes[min(self.trainer.current_epoch, len(sizes) - 1)])
        return images, labels

    def _loader(
        self,
        split: Split,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
    ) -> BatchLoader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        evaluation_batch_size = EVALUATION_BATCH_SIZES["cpu" if device.type == "cpu" else "other"]
        return BatchLoader(
            split.images,
            split.labels,
            batch_size=batch_size or evaluation_batch_size,
            shuffle=shuffle,
            augmentation=augmentation,
            device=device,
            seed=self.hparams["seed"],
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )


EVALUATION_BATCH_SIZES = {"cpu": 100, "other": 500}
"""Images in a validation or test batch: it changes no figure. On a CPU larger ones are no faster, and take memory."""


def to_float(images: Tensor) -> Tensor:
    """Turn bytes into what a network takes; the convolutions are faster with the channels last in memory.

    Args:
        images: ``(N, 3, 32, 32)``, uint8.

    Returns:
        The same in float32, divided by 255.
    """
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def hold_out(split: Split, val_size: int | float, seed: int) -> tuple[Split, Split]:
    """Hold out images for validation, from each class in its proportion.

    Args:
        split: All training images.
        val_size: How many to hold out, as a number or a fraction below 1.
        seed: What the choice is drawn from, 0 or more.

    Returns:
        The images to train with and those held out, both in their old order. They have no image in common.

    Raises:
        ValueError: If a class would be left without training images, or validation without any image.
    """
    num_images = len(split.labels)
    num_val = round(val_size * num_images) if isinstance(val_size, float) else val_size
    if not 0 < num_val < num_images:
        raise ValueError(
            f"--data.val_size is {val_size}, and there are {num_images} training images: give fewer, or a fraction "
            "such as 0.1"
        )
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(split.labels)
    # Largest remainders: the parts of the classes add up to num_val exactly.
    exact = counts.double() * (num_val / num_images)
    quota = exact.floor().long()
    quota[torch.argsort(exact - quota, descending=True, stable=True)[: num_val - int(quota.sum())]] += 1
    if bool((quota >= counts).any()):
        raise ValueError(f"--data.val_size is {val_size}: a class would be left without training images; give fewer")
    held_out = torch.zeros(num_images, dtype=torch.bool)
    for label, number in enumerate(quota.tolist()):
        places = (split.labels == label).nonzero().squeeze(1)
        held_out[places[torch.randperm(len(places), generator=generator)[:number]]] = True

    def take(chosen: Tensor) -> Split:
        index = chosen.nonzero().squeeze(1)
        pixels = split.images.permute(0, 2, 3, 1).index_select(0, index)
        return Split(pixels.permute(0, 3, 1, 2), split.labels.index_select(0, index))

    return take(~held_out), take(held_out)
