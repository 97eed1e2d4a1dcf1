"""Images that need not fit into memory: in a memory-mapped file, from which batches are cut."""

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_lit.data.augment import CHUNK, resize
from cifar_lit.errors import UserError
from cifar_lit.machine import free_memory

SHARE = 0.25
"""Of the free memory, that the images of a split may take in each process: a training may hold them more than twice."""


class StoredImages:
    """Images ``(N, height, width, 3)``, uint8, selected by index from others, and read when they are used.

    It stands where a tensor does, and behaves like one: anything but its shape and an index reads all of it.

    Args:
        images: All images, perhaps memory-mapped.
        small: The same images in 32x32 pixels, by which they are hashed: no split depends on the image size.
        index: Positions of those that are selected, ``(N,)``, int64; by default all.
    """

    def __init__(self, images: Tensor, small: Tensor, index: Tensor | None = None) -> None:
        self.images, self.small = images, small
        self.index = torch.arange(len(images)) if index is None else index

    @property
    def shape(self) -> torch.Size:
        """Their number, height, width and channels."""
        return torch.Size((len(self), *self.images.shape[1:]))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[self.index[index]]

    def __getattr__(self, name: str) -> Any:
        if name in ("images", "small", "index") or name.startswith("__"):  # when it is copied
            raise AttributeError(name)
        return getattr(self[:], name)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Read images by their positions, ``(n,)``, int64."""
        return self.images.index_select(dim, self.index[index])


def select(images: Any, index: Tensor | slice) -> Any:
    """Return the images at positions, of a slice, or where a mask is set; of ``StoredImages`` without reading them."""
    if isinstance(images, StoredImages):
        return StoredImages(images.images, images.small, images.index[index])
    return images[index]


def small(images: Any) -> Tensor:
    """Return images in the 32x32 pixels by which they are compared; of a tensor, as they are."""
    return images.small[images.index] if isinstance(images, StoredImages) else images


def fits(images: Any, device: torch.device | str = "cpu") -> bool:
    """Return whether images, or an array of this shape, may be in memory, or on the GPU; each rank has its own."""
    num_bytes: int = math.prod(getattr(images, "shape", images))
    return num_bytes * int(os.environ.get("WORLD_SIZE") or 1) <= SHARE * free_memory(device)


def room_for(shape: tuple[int, ...], folder: Path, *, num_saved: int = 0) -> Tensor:
    """Return a tensor of bytes to fill: in memory or, if that is too small, in a file that ends with the process.

    A disk that cannot hold it, and ``num_saved`` copies, is a ``UserError``.
    """
    num_bytes, num_files = math.prod(shape), num_saved + (not fits(shape))
    if num_files:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if num_files * num_bytes > free:
            raise UserError(
                f"`cache_dir`: {folder} has {free / 1e9:.2f} GB free, and {shape[0]:,} images of {shape[1]}x{shape[2]} "
                f"pixels need {num_files * num_bytes / 1e9:.2f} GB there: give another folder or a smaller `image_size`"
            )
    if num_files == num_saved:
        return torch.empty(shape, dtype=torch.uint8)
    with tempfile.TemporaryFile("w+b", dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # or a disk that becomes full would kill the process
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))


def resized(images: Any, size: int, folder: Path) -> Any:
    """Return images ``(N, height, width, 3)``, uint8, in another size: the pixels that ``read_image`` makes of them."""
    if images.shape[1] == size:
        return images
    room = room_for((len(images), size, size, 3), folder)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].permute(0, 3, 1, 2)
        room[start : start + CHUNK] = resize(part, size).permute(0, 2, 3, 1)
    return StoredImages(room, images)
