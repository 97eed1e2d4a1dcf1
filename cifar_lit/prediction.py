"""Predictions for images of a user's own: files, Pillow images, arrays or tensors -> probabilities."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cifar_lit.data.augment import check_values, to_float, wrong_dtype
from cifar_lit.data.decoding import Resize, load_images
from cifar_lit.data.known import KnownImages
from cifar_lit.errors import UserError, require
from cifar_lit.networks import check_logits, evaluation_mode
from cifar_lit.networks.tta import TTA, TTA_MODES, tta_logits

Picture = Image.Image | str | Path | NDArray[Any] | Tensor
"""One image: a file, a Pillow image, an array ``(height, width[, channels])``, a tensor ``(3, size, size)``."""


class Predictor(LightningModule):
    """What an ``ImageClassifier`` does without a Trainer.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        image_size: Height and width of the images in pixels.
        net: The network.
        mean: Mean of each colour channel; its device and dtype are those of the network.
    """

    classes: list[str]
    image_size: int
    net: nn.Module
    mean: Tensor

    @torch.inference_mode()
    def predict(
        self, images: Picture | Iterable[Picture], *, tta: Literal["none", TTA] = "none", batch_size: int = 100
    ) -> Tensor:
        """Compute the probabilities of the classes, in evaluation mode; each part is then put back into its own mode.

        Args:
            images: Tensors ``(N, 3, image_size, image_size)`` or ``(3, image_size, image_size)``, uint8, or float in
                [0, 1], on any device. Or images of any size, which are prepared like those of the training: files,
                Pillow images, arrays ``(N, height, width, channels)``, ``(height, width, channels)`` or ``(height,
                width)`` with 1, 3 (RGB) or 4 (RGBA) channels, uint8, or float in [0, 1]; one, or a sequence.
            tta: Test-time augmentation, as for the constructor.
            batch_size: Images per forward pass; changes no result beyond rounding.

        Returns:
            ``(N, num_classes)``, float32, on the CPU; the names of the columns are in ``classes``.

        Raises:
            UserError: (a ``ValueError``) for images of another kind, shape, dtype or range, or a broken file.
        """
        require("tta", tta, tta in TTA_MODES, f"one of {', '.join(TTA_MODES)}")
        require("batch_size", batch_size, batch_size >= 1, "at least 1")
        images = as_batch(images, self.image_size, self.hparams["resize"])
        probabilities = [torch.zeros(0, len(self.classes))]
        with evaluation_mode(self):
            for batch in torch.split(images, batch_size):
                batch = to_float(batch.to(self.mean.device)).contiguous(memory_format=torch.channels_last)
                logits = self(batch) if tta == "none" else tta_logits(self, batch, tta)
                check_logits(logits, self.net, len(batch), len(self.classes))
                probabilities.append(logits.float().softmax(1).cpu())
        return torch.cat(probabilities)

    def check_network(self) -> None:
        """Compute the logits of two images; a network that gives others than one for each class is a ``UserError``.

        So is a ``CIFAR10DataModule`` of the Trainer with another ``image_size``.
        """
        size, data = self.image_size, self._trainer and getattr(self._trainer, "datamodule", None)
        given = data.hparams["image_size"] if isinstance(data, KnownImages) else size
        require("image_size", size, given == size, f"{given}, that of the data")
        images = torch.zeros(2, 3, size, size, device=self.mean.device, dtype=self.mean.dtype)
        with torch.no_grad(), evaluation_mode(self.net):
            logits = self.net.forward(images)  # not compiled
        check_logits(logits, self.net, 2, len(self.classes))


def as_batch(images: Picture | Iterable[Picture], size: int = 32, resize: Resize = "squash") -> Tensor:
    """Convert one image or several to a tensor ``(N, 3, size, size)``, uint8 or floating point in [0, 1].

    Args:
        images: Tensors ``(N, 3, size, size)`` or ``(3, size, size)``; arrays ``(N, height, width, channels)``,
            ``(height, width, channels)`` or ``(height, width)`` with 1, 3 or 4 channels; files and Pillow images; a
            sequence of any of these. Images of another size are resized, unless they are tensors.
        size: Height and width of the result.
        resize: How an image becomes square.

    Raises:
        UserError: For another kind, shape or dtype, and for floating point outside [0, 1].
    """
    if isinstance(images, Tensor) and images.ndim != 3:
        return _check(images, size)
    is_one = isinstance(images, str | os.PathLike | Image.Image | Tensor)
    if is_one or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        images = [images]  # type: ignore[list-item]
    if isinstance(images, bytes | dict) or not isinstance(images, Iterable) or getattr(images, "shape", None) == ():
        raise _refusal(images)
    parts = [_check(_tensor(image, size, resize)[None], size) for image in images]
    if len({part.dtype for part in parts}) > 1:
        parts = [to_float(part).float() for part in parts]
    return torch.cat(parts) if parts else torch.zeros(0, 3, size, size)


def _tensor(image: Any, size: int, resize: Resize) -> Tensor:
    """Convert one image to a tensor of channels, rows and columns."""
    if isinstance(image, Tensor):
        return image
    if isinstance(image, str | os.PathLike | Image.Image):
        return load_images([image], size, resize)[0].permute(2, 0, 1)  # type: ignore[list-item]
    if not isinstance(image, np.ndarray):
        raise _refusal(image)
    if image.dtype.kind == "f":  # of any byte order
        image = image.astype(np.float64 if image.dtype.itemsize > 4 else np.float32)
        check_values(torch.from_numpy(image.copy()))
    elif image.dtype != np.uint8:
        raise wrong_dtype(image.dtype)
    if image.shape in ((3, size, size), (size, size, 3)):
        tensor = torch.from_numpy(image.copy())
        return tensor if len(image) == 3 else tensor.permute(2, 0, 1)
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)) or image.size == 0:
        raise UserError(f"`images` has an array of the shape {image.shape}: must be (height, width, channels)")
    pixels = image if image.dtype == np.uint8 else np.rint(image * 255).clip(0, 255).astype(np.uint8)
    return _tensor(Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels), size, resize)


def _check(images: Tensor, size: int) -> Tensor:
    if images.shape[1:] != (3, size, size):
        raise UserError(f"`images` has the shape {tuple(images.shape)}: must be (N, 3, {size}, {size})")
    check_values(images)
    return images


def _refusal(images: object) -> UserError:
    return UserError(f"`images` has a {type(images).__name__}: must be a file, a Pillow image, an array or a tensor")
