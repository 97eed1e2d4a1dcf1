"""Images and labels in memory -> batches, in an order that is a pure function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """Give the order in which one epoch visits the images.

    Args:
        num_images: How many there are.
        seed: The run's seed, 0 or more.
        epoch: The epoch, from 0.

    Returns:
        A permutation of ``0 .. num_images - 1``, int64; the same for the same arguments, on any machine.
    """
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(int(mixed >> 1)))


class BatchLoader:
    """Cuts whole batches out of tensors in memory by index; there are no workers and nothing is copied twice.

    With several ranks a shuffled loader gives each of them the same number of batches: the ranks share every
    global batch of ``batch_size * world_size`` images, and a last global batch with fewer images than ranks is
    left out. An unshuffled loader, which is for evaluation, counts each image exactly once over the ranks, so
    one rank may get a batch more than another.

    Args:
        images: ``(N, 3, 32, 32)``, uint8.
        labels: ``(N,)``, int64.
        batch_size: Images in a batch of one rank; the last batch of an epoch may have fewer.
        shuffle: Draw a new order for each epoch.
        seed: What the orders are drawn from, 0 or more.
        rank: Which of the ranks this is, from 0.
        world_size: How many ranks there are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    batch_sampler = None
    """None, as in a torch loader without one: the Trainer looks whether there is one."""

    @property
    def sampler(self) -> "BatchLoader":
        """Itself: the Trainer announces each epoch to ``loader.sampler.set_epoch``, as it does for torch's samplers."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is.

        Args:
            epoch: The epoch, from 0.
        """
        self.epoch = epoch

    def indices(self) -> list[Tensor]:
        """Give the image indices of each batch of the current epoch.

        Returns:
            One int64 tensor per batch.
        """
        if not self.shuffle:
            return list(torch.split(torch.arange(self.rank, len(self.labels), self.world_size), self.batch_size))
        order = epoch_order(len(self.labels), seed=self.seed, epoch=self.epoch)
        global_batches = torch.split(order, self.batch_size * self.world_size)
        return [batch[self.rank :: self.world_size] for batch in global_batches if len(batch) >= self.world_size]

    def __len__(self) -> int:
        if not self.shuffle:
            num_mine = len(range(self.rank, len(self.labels), self.world_size))
            return -(-num_mine // self.batch_size)
        full, rest = divmod(len(self.labels), self.batch_size * self.world_size)
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in self.indices():
            yield self.images[index], self.labels[index]
