"""Images and labels in memory -> batches; their order and their augmentation are a pure function of (seed, epoch)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cifar_lit.augment import Augmentation, crop, cutout, flip, generator_for, pad


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """Give the order in which one epoch visits the images.

    Args:
        num_images: How many there are.
        seed: The run's seed, 0 or more.
        epoch: The epoch, from 0.

    Returns:
        A permutation of ``0 .. num_images - 1``, int64; the same for the same arguments, on any machine.
    """
    return torch.randperm(num_images, generator=generator_for(seed, epoch))


class BatchLoader:
    """Cuts whole batches out of tensors in memory by index, and augments them; there are no workers.

    On a GPU it takes the images there once, and batches are made there.

    With several ranks a shuffled loader gives each of them the same number of batches: the ranks share every
    global batch of ``batch_size * world_size`` images, and a last global batch with fewer images than ranks is
    left out. An unshuffled loader, which is for evaluation, counts each image exactly once over the ranks, so
    one rank may get a batch more than another. What is done to an image in an epoch does not depend on the ranks.

    Args:
        images: ``(N, 3, 32, 32)``, uint8.
        labels: ``(N,)``, int64.
        batch_size: Images in a batch of one rank; the last batch of an epoch may have fewer.
        shuffle: Draw a new order for each epoch.
        augmentation: What is done to the images; None for nothing.
        seed: What orders and augmentations are drawn from, 0 or more.
        rank: Which of the ranks this is, from 0.
        world_size: How many ranks there are.
        device: Where the batches are made.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = images.shape[-1]
        self.augmentation = augmentation or Augmentation()
        self.pixels = images.to(device).permute(0, 2, 3, 1).contiguous()
        if self.augmentation.cutout:
            num_pixels = self.pixels.numel() // 3
            self.colour = (self.pixels.sum((0, 1, 2)) / num_pixels).round().byte()  # the mean
        if self.augmentation.crop_padding:
            self.pixels = pad(self.pixels, self.augmentation.crop_padding)
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._num_batches = 0  # given out in this epoch
        self._first = 0  # batch of the next iteration

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

    def state_dict(self) -> dict[str, int]:
        """Give the place in the epoch, 0 at its end; the epoch itself is the Trainer's to keep."""
        return {"num_batches": self._num_batches % max(1, len(self))}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin at a place within the epoch.

        Args:
            state_dict: ``num_batches`` that it leaves out.
        """
        self._first = state_dict["num_batches"]

    def indices(self) -> list[Tensor]:
        """Give the image indices of each batch of the current epoch.

        Returns:
            One int64 tensor per batch.
        """
        device = self.labels.device
        if not self.shuffle:
            mine = torch.arange(self.rank, len(self.labels), self.world_size, device=device)
            return list(torch.split(mine, self.batch_size))
        order = epoch_order(len(self.labels), seed=self.seed, epoch=self.epoch).to(device)
        global_batches = torch.split(order, self.batch_size * self.world_size)
        return [batch[self.rank :: self.world_size] for batch in global_batches if len(batch) >= self.world_size]

    def __len__(self) -> int:
        if not self.shuffle:
            num_mine = len(range(self.rank, len(self.labels), self.world_size))
            return -(-num_mine // self.batch_size)
        full, rest = divmod(len(self.labels), self.batch_size * self.world_size)
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        how = self.augmentation
        draws = how.draw(len(self.labels), self.size, seed=self.seed, epoch=self.epoch).to(self.labels.device)
        first, self._first = self._first, 0
        for number, index in enumerate(self.indices()):
            if number < first:
                continue
            self._num_batches = number + 1
            corners, flips, holes = draws.at(index)
            images = (
                self.pixels.index_select(0, index) if corners is None else crop(self.pixels, index, corners, self.size)
            )
            if flips is not None:
                images = flip(images, flips)
            if holes is not None:
                images = cutout(images, holes, how.cutout, self.colour)
            # Seen as (n, 3, 32, 32), with the channels last in memory.
            yield images.permute(0, 3, 1, 2), self.labels.index_select(0, index)
