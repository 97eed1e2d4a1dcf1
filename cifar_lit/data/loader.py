"""Batches of images in memory; order and augmentation are a pure function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cifar_lit.data.augment import CHUNK, Augmentation, AugmentParams, check_values, crop, generator_for, pad, to_float
from cifar_lit.data.mixing import mix
from cifar_lit.data.stored import StoredImages, fits
from cifar_lit.errors import UserError


def num_trained(num_images: int, batch_size: int, world_size: int = 1) -> int:
    """Return how many images of an epoch are trained; those that are left out are others in each epoch.

    A last batch with one image on a rank is left out, as BatchNorm fails there or normalises the image by itself,
    unless there is no other batch, or ``batch_size`` is 1; one with no image on a rank always is.
    """
    num_last = num_images % (batch_size * world_size)
    fewest = world_size if num_last == num_images else world_size * min(2, batch_size)
    return num_images - num_last if num_last < fewest else num_images


@dataclass(eq=False, repr=False)
class BatchLoader:
    """Selects batches by index from images and augments them whole, on the device and without workers.

    With several ranks a shuffled loader yields the same number of batches on each: the ranks share each global batch of
    ``batch_size * world_size`` images. A last one with fewer than two images per rank is left out, as ``num_trained``
    says. A loader without shuffling, for evaluation, yields each image exactly once over all ranks, so that one rank
    may have a batch more than another. The augmentation of an image in an epoch does not depend on the ranks.

    Each iteration is an epoch: it begins the next one, unless ``set_epoch`` was called since the last one began, which
    the Trainer does for each epoch. It is no ``torch.utils.data.DataLoader``: in a loop of your own, with
    Fabric for example, iterate over it as it is, and give it ``rank``, ``world_size`` and ``device``.

    Args:
        images: ``(N, height, width, 3)``, uint8, contiguous; height and width are equal. A tensor is held in the memory
            of the device; so are ``StoredImages`` if they fit, and else their batches alone are read.
        labels: ``(N,)``, int64.
        batch_size: Images per batch and rank; the last batch of an epoch may have fewer, in training not only one.
        shuffle: Use a new random order for each epoch.
        augmentation: Augmentation of the images; by default none.
        seed: Seed of the orders and augmentations, at least 0.
        rank: This process among the ranks, from 0.
        world_size: Number of ranks.
        device: Device of the images and batches.
        num_classes: Number of classes, for MixUp and CutMix; by default up to the highest label.

    Yields:
        Images ``(n, 3, height, width)``, uint8, channels last in memory, and labels ``(n,)``, int64; with MixUp or
        CutMix the share of each class, ``(n, num_classes)``, float32.
    """

    images: Tensor
    labels: Tensor
    _: KW_ONLY
    batch_size: int
    shuffle: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"
    num_classes: int = 0

    def __post_init__(self) -> None:
        self.size = self.images.shape[1]
        if not isinstance(self.images, StoredImages) or (fits(self.images) and fits(self.images, self.device)):
            self.images = (self.images if isinstance(self.images, Tensor) else self.images[:]).to(self.device)
        self.labels = self.labels.to(self.device)
        if self.augmentation.mixup or self.augmentation.cutmix:
            self.one_hot = torch.eye(self.num_classes or int(self.labels.max()) + 1, device=self.device)
        self.colour = torch.zeros(3)
        if self.augmentation.cutout or self.augmentation.erasing:
            # In parts, because torch converts all that it sums to int64 first.
            parts = [self.images[i : i + CHUNK].sum((0, 1, 2)) for i in range(0, len(self.images), CHUNK)]
            num_pixels = len(self.images) * self.size**2
            self.colour = (torch.stack(parts).sum(0) / num_pixels).round().byte().to(self.device)
        if self.augmentation.crop_padding and isinstance(self.images, Tensor) and self.images.device.type != "cpu":
            self.images = pad(self.images, self.augmentation.crop_padding)  # once: there no step may wait for the CPU
        self.epoch = 0
        self._is_begun = False  # whether an iteration of this epoch has begun
        self._start = 0  # batch at which the next iteration begins

    batch_sampler = None  # the Trainer looks for it

    @property
    def sampler(self) -> "BatchLoader":
        """The loader itself: the Trainer calls ``loader.sampler.set_epoch``, as it does for torch's samplers."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self.epoch, self._is_begun = epoch, False

    def start_at(self, num_batches: int) -> None:
        """Let the next iteration, and only that one, skip the first batches of its epoch."""
        self._start = num_batches

    def indices(self) -> list[Tensor]:
        """Return the positions in ``images`` of each batch of the current epoch, one int64 tensor per batch."""
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(self.labels), generator=generator_for(self.seed, self.epoch))
            order = order[: num_trained(len(self.labels), self.batch_size, self.world_size)]
        global_batches = torch.split(order.to(self.labels.device), self.batch_size * self.world_size)
        return [batch[self.rank :: self.world_size] for batch in global_batches if len(batch) > self.rank]

    def __len__(self) -> int:
        return len(self.indices())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch, self._is_begun = self.epoch + self._is_begun, True
        params = self.augmentation.sample(
            len(self.labels), self.size, seed=self.seed, epoch=self.epoch, device=self.device
        )
        start, self._start = self._start, 0
        for index in self.indices()[start:]:
            rows = params.at(index)
            images, labels = self._augment(index, rows), self.labels.index_select(0, index)
            if rows.others is not None and rows.mixing is not None:
                others = self._augment(rows.others, params.at(rows.others))
                images, shares = mix(images, others, rows.mixing)
                own, other = self.one_hot[labels], self.one_hot[self.labels[rows.others]]
                labels = own * shares + other * (1 - shares)
            yield images.permute(0, 3, 1, 2), labels

    def _augment(self, index: Tensor, params: AugmentParams) -> Tensor:
        return self.augmentation.apply(self._cut(index, params.corners), params, self.colour)

    def _cut(self, index: Tensor, corners: Tensor | None) -> Tensor:
        """Return a batch, ``(n, size, size, 3)``; on a CPU, images are padded a batch at a time, to save memory."""
        images = self.images
        if isinstance(images, StoredImages) or (corners is not None and images.shape[1] == self.size):
            images = pad(images.index_select(0, index.cpu()).to(self.device), self.augmentation.crop_padding)
            index = torch.arange(len(index), device=index.device)
        return images.index_select(0, index) if corners is None else crop(images, index, corners, self.size)


def check_batch(batch: Any, batch_idx: int = 0) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a batch; in the first batch of an epoch, check the images.

    Images of any loader are ``(N, 3, height, width)``, uint8, or floating point in [0, 1]; others are a ``UserError``.
    Values are checked once per epoch, because reading them waits for a GPU.
    """
    images, labels = batch
    if not batch_idx:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"`images` has the shape {tuple(images.shape)} in a batch: must be (N, 3, height, width)")
        check_values(images)
    return images, labels


def training_images(trainer: Any, num_images: int = 5000) -> Tensor:
    """Return images to initialise a network from, ``(n, 3, height, width)``, float32 in [0, 1], on the CPU.

    They come from ``sample_images`` of the data module, or else from the first batches of the training: without a step
    in the random numbers.
    """
    if hasattr(trainer.datamodule, "sample_images"):
        images: Tensor = trainer.datamodule.sample_images(num_images)
        return images
    trainer.fit_loop.setup_data()
    parts: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for batch in trainer.train_dataloader:
            parts.append(to_float(check_batch(batch)[0].cpu()))
            if sum(map(len, parts)) >= num_images:
                break
    return torch.cat(parts)[:num_images]
