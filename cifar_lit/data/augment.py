"""Augmentation of whole batches of bytes, without a loop over images; its parameters are sampled once per epoch.

Images have the layout ``(N, height, width, 3)``: the pixels of a row are contiguous, so that a crop copies whole rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cifar_lit.data.colour import jitter, sample_operations, trivial_augment
from cifar_lit.data.mixing import fill, sample_erased, sample_mixing
from cifar_lit.errors import UserError

CHUNK = 1000
"""Images that are read or converted together."""
EXPECTED = "uint8, or floating point in [0, 1]"
TOLERANCE = 1e-3
"""By which interpolation and rounding may leave the range of the values."""
Flip = Literal["none", "random", "alternating"]


def generator_for(*key: int) -> torch.Generator:
    """Return a generator whose numbers are a pure function of a key, such as seed and epoch, on any machine.

    The key has numbers of at least 0. Trailing zeros make no difference.
    """
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))


class AugmentParams(NamedTuple):
    """The augmentation of each image in one epoch: row ``i`` belongs to image ``i``. None for what is switched off."""

    corners: Tensor | None = None  # (N, 2), int64: top row and left column of the crop in the padded image
    flips: Tensor | None = None  # (N,), int64: 1 where the image is mirrored
    holes: Tensor | None = None  # (N, 2), int64: row and column of the centre of the cutout
    operations: Tensor | None = None  # (N, 2), float32: operation of TrivialAugment, and its strength in [-1, 1]
    factors: Tensor | None = None  # (N, 3), float32: of brightness, contrast and saturation
    boxes: Tensor | None = None  # (N, 4), int64: the box that is erased
    others: Tensor | None = None  # (N,), int64: the image that is mixed in
    mixing: Tensor | None = None  # (N, 5), float32: its box, and the share of the image itself outside of it

    def at(self, index: Tensor) -> "AugmentParams":
        """Return the rows of a batch, ``index`` of shape ``(n,)``, int64."""
        return AugmentParams(*(None if part is None else part.index_select(0, index) for part in self))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop, horizontal flip, TrivialAugment, colour jitter, random erasing, cutout and mixing, in that order.

    What is done to an image in an epoch, the image that is mixed in included, is a function of the seed, the epoch and
    its position in the training images; neither batches nor ranks matter.

    Attributes:
        crop_padding: Pixels of reflection padding on each side, from which a random crop of the old size is taken; 0
            for none.
        flip: ``random`` mirrors each image with probability 0.5. ``alternating`` mirrors a random half of the images in
            the first epoch, the other half in the next, and so on, so that two consecutive epochs show each image both
            ways (arXiv 2404.00498).
        cutout: Side in pixels of a square around a random pixel that is filled with the mean colour (arXiv 1708.04552),
            clipped at the edge; 0 for none.
        mixup: Alpha of MixUp (arXiv 1710.09412): each image becomes ``share * image + (1 - share) * other``, and its
            label likewise, with a share from Beta(alpha, alpha); 0 for none.
        cutmix: Alpha of CutMix (arXiv 1905.04899): a box of a size from Beta(alpha, alpha) shows the other image, and
            the labels have the shares of the areas; 0 for none. With both, each image has one of the two at random.
        brightness: Each image has a factor that is uniform in [1 - brightness, 1 + brightness]; from 0 for none to 1.
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        erasing: Probability of filling a random box of an image with the mean colour (arXiv 1708.04896, there RE-M).
        trivial_augment: Do one random operation of random strength to each image (arXiv 2103.10158).
    """

    crop_padding: int = 0
    flip: Flip = "none"
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erasing: float = 0.0
    trivial_augment: bool = False

    def sample(
        self, num_images: int, size: int, *, seed: int, epoch: int, device: torch.device | str = "cpu"
    ) -> AugmentParams:
        """Sample the parameters of one epoch for square images: a pure function of seed and epoch on any device."""
        generator = generator_for(seed, epoch, 1)
        params: dict[str, Tensor] = {}
        if self.crop_padding:
            params["corners"] = torch.randint(2 * self.crop_padding + 1, (num_images, 2), generator=generator)
        if self.flip == "random":
            params["flips"] = torch.randint(2, (num_images,), generator=generator)
        elif self.flip == "alternating":
            params["flips"] = torch.randint(2, (num_images,), generator=generator_for(seed, 0, 2)) ^ (epoch % 2)
        if self.cutout:
            params["holes"] = torch.randint(size, (num_images, 2), generator=generator)
        # The others have generators of their own (the mixing ones together), so that they move no numbers of these.
        if self.trivial_augment:
            params["operations"] = sample_operations(num_images, generator_for(seed, epoch, 3))
        if self.brightness or self.contrast or self.saturation:
            widths = torch.tensor([self.brightness, self.contrast, self.saturation])
            random = torch.rand(num_images, 3, generator=generator_for(seed, epoch, 4))
            params["factors"] = 1 + widths * (2 * random - 1)
        if self.erasing:
            params["boxes"] = sample_erased(num_images, size, self.erasing, generator_for(seed, epoch, 5))
        if self.mixup or self.cutmix:
            mixing = sample_mixing(num_images, size, self.mixup, self.cutmix, seed, epoch, 6)
            params["others"], params["mixing"] = mixing
        return AugmentParams(**{name: part.to(device) for name, part in params.items()})

    def apply(self, images: Tensor, params: AugmentParams, colour: Tensor) -> Tensor:
        """Change images ``(n, size, size, 3)``, uint8, that are cropped; holes and boxes have the ``colour`` ``(3,)``.

        What remains is to mix them.
        """
        if params.flips is not None:
            images = flip(images, params.flips)
        if params.operations is not None:
            images = trivial_augment(images, params.operations)
        if params.factors is not None:
            images = jitter(images, params.factors)
        if params.boxes is not None:
            images = fill(images, params.boxes, colour)
        if params.holes is not None:
            first = params.holes - self.cutout // 2  # for an even side, the hole is the later of the two middle pixels
            images = fill(images, torch.cat((first, first + self.cutout), 1), colour)
        return images


def pad(images: Tensor, padding: int) -> Tensor:
    """Pad all sides of images ``(N, height, width, 3)`` by reflection, without repeating the edge pixels."""
    if not padding:
        return images
    reflected = [np.pad(np.arange(size), padding, mode="reflect") for size in images.shape[1:3]]
    rows, columns = (torch.from_numpy(index).to(images.device) for index in reflected)
    padded = images.new_empty(len(images), len(rows), len(columns), images.shape[3])
    for start in range(0, len(images), CHUNK):  # in parts, or all of them would be in memory three times
        part = images[start : start + CHUNK].index_select(1, rows)
        # Between the borders a row is copied as a whole, which takes half of the time.
        left, right = (part.index_select(2, side) for side in (columns[:padding], columns[-padding:]))
        torch.cat((left, part, right), 2, out=padded[start : start + CHUNK])
    return padded


def crop(padded: Tensor, index: Tensor, corners: Tensor, size: int) -> Tensor:
    """Select images ``index`` ``(n,)`` of a contiguous dataset ``(N, height, width, 3)``; crop each at its own corner.

    ``corners`` ``(n, 2)`` are the top row and left column of each crop. The result is ``(n, size, size, 3)``, uint8.
    """
    _, height, width, channels = padded.shape
    # A view of all runs of `size` pixels, beginning at any byte: its rows overlap in memory.
    run = size * channels
    runs = padded.as_strided((padded.numel() - run + 1, run), (1, 1))
    first = (index * height + corners[:, 0]) * width + corners[:, 1]
    rows = first[:, None] + torch.arange(size, device=padded.device) * width
    return runs.index_select(0, rows.view(-1) * channels).view(len(index), size, size, channels)


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror the images ``(n, height, width, 3)``, left to right, where ``flips`` ``(n,)`` is 1."""
    both = torch.cat((images, images.flip(2)))  # indexing is twice as fast as torch.where
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * flips)


def to_float(images: Tensor) -> Tensor:
    """Convert bytes to the network's input; the only place where this happens.

    uint8 ``(N, 3, height, width)`` becomes float32 in [0, 1], channels last in memory (faster convolutions). Floating
    point is returned unchanged, and another dtype is a ``UserError``.
    """
    if images.is_floating_point():
        return images
    if images.dtype != torch.uint8:
        raise wrong_dtype(images.dtype)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def wrong_dtype(dtype: object) -> UserError:
    """Return the error for images of another dtype."""
    return UserError(f"`images` has the dtype {dtype}: must be {EXPECTED}; convert integers from 0 to 255 to uint8")


def check_values(images: Tensor) -> None:
    """Raise a ``UserError`` for another dtype or range; that waits for a GPU, where the images are floating point."""
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise wrong_dtype(images.dtype)
    low, high = map(float, images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # so that NaN is refused, too
        values = f"`images` has values from {low:g} to {high:g}"
        raise UserError(f"{values}: must be {EXPECTED}; the model normalises them by its `mean` and `std`")


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images ``(N, 3, height, width)``, of any dtype, to a square: bilinear with antialiasing."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def size_of_epoch(sizes: Sequence[int], epoch: int, max_epochs: int | None) -> int:
    """Return the image size of an epoch, from 0: its entry in ``sizes``, and the last one in all later epochs.

    A training of fewer epochs than sizes skips some of them evenly, so that it ends with the last one: that of a test.
    """
    if max_epochs is not None and 0 < max_epochs < len(sizes):  # -1 and None: until a number of steps, or a time
        epoch = (epoch + 1) * len(sizes) // max_epochs - 1
    return sizes[min(epoch, len(sizes) - 1)]
