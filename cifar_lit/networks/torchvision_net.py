"""Any of torchvision's networks for classification. torchvision is imported when one is built."""

import contextlib
import functools
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifar_lit.errors import UserError, suggest
from cifar_lit.networks.base import Network


class TorchvisionNet(Network):
    """A network of torchvision, with a last layer for the number of classes and without auxiliary outputs.

    Its ``weights`` are loaded when a new training starts. One of a checkpoint downloads nothing and reads no file.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images, for which a vision transformer is built.
        name: Which one: resnet18, mobilenet_v3_small, ... (https://docs.pytorch.org/vision/stable/models.html).
        small_stem: Do not shrink the image at the start, as suits 32x32: the first convolution gets stride 1 and
            filters of 3x3, and the max-pooling after it is left out.
        weights: To start from: DEFAULT, or another of torchvision's names, as IMAGENET1K_V1, downloaded once; or a file
            with a state_dict. A last layer or first convolution of another shape is initialised at random.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        *,
        name: str = "resnet18",
        small_stem: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        _check_names(name, weights)
        self.name, self.image_size, self.weights = name, image_size, weights
        try:
            self.model = _build(name, num_classes, image_size, is_new=weights is None)
        except (ValueError, AssertionError) as error:
            reason = str(error).partition(". ")[0]
            text = f"`net`.name is {name}, for an `image_size` of 224, say, and not {image_size}: {reason}"
            raise UserError(text) from error
        if small_stem:
            _make_stem_small(self.model, name)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, height, width)`` to logits ``(N, num_classes)``."""
        if _size_option(self.name, 0) and {*images.shape[-2:]} != {self.image_size}:
            raise UserError(f"`net`.name is {self.name}, which takes only images of its `image_size` {self.image_size}")
        logits: Tensor = self.model(images)
        return logits

    def load_weights(self) -> str:
        """Load the ``weights``; return what was loaded, or an empty text."""
        if self.weights is None:
            return ""
        own = self.model.state_dict()
        # The weights of DenseNet are of 2017, when its layers had other names.
        old, new = r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"
        state = {re.sub(old, new, key): part for key, part in _read(self.name, self.weights).items()}
        if "encoder.pos_embedding" in state and self.name.startswith("vit_"):
            from torchvision.models.vision_transformer import interpolate_embeddings

            try:
                state = interpolate_embeddings(self.image_size, int(self.name[-2:]), state)
            except ValueError as error:
                text = f"`net`.weights is {self.weights}: these are not of {self.name}: {error}"
                raise UserError(text) from error
        others = [key for key, part in own.items() if key in state and state[key].shape != part.shape]
        found = {key: part for key, part in state.items() if key not in others}
        missing, unexpected = self.model.load_state_dict(found, strict=False)
        odd = [key for key in (*missing, *unexpected) if key not in others and not key.lower().startswith("aux")]
        if odd or len(others) > 3:  # the weight and bias of the last layer, and the first filters
            different = (odd or others)[0]
            raise UserError(f"`net`.weights is {self.weights}: these are not of {self.name}: {different} differs")
        self.initialised = [f"model.{key}" for key in others]
        text = f"{self.name}: {len(own) - len(others)} of {len(own)} tensors from {self.weights}"
        return f"{text}; at random: {', '.join(others)}" if others else text


def _check_names(name: str, weights: str | None) -> None:
    from torchvision import models

    names = models.list_models(module=models)  # without detection, segmentation, video
    if name not in names:
        raise UserError(
            f"`net`.name is {name!s:.60}: must be one of torchvision's {len(names)} networks for classification, as "
            f"resnet18 or mobilenet_v3_small{suggest(str(name), names)}"
        )
    known = list(models.get_model_weights(name).__members__)
    if weights is not None and weights not in known and not Path(weights).suffix:
        near = suggest(weights, known)
        raise UserError(
            f"`net`.weights is {weights:.60}: must be one of {', '.join(known)}, or a file with a suffix, as .pth{near}"
        )


def _size_option(name: str, size: int) -> dict[str, Any]:
    """Return the option of a network that is built for one size of images; empty for others."""
    options: dict[str, dict[str, Any]] = {"vit": {"image_size": size}, "maxvit": {"input_size": (size, size)}}
    return options.get(name.partition("_")[0], {})


def _build(name: str, num_classes: int, size: int, *, is_new: bool) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {"num_classes": num_classes, **_size_option(name, size)}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": is_new, "transform_input": not is_new}
    with _WidthsOnCPU() if name.startswith("regnet") else contextlib.nullcontext():
        model: Any = get_model(name, **options)
    if name.startswith("mnasnet"):  # which takes no weights without the metadata of a state_dict, as an export's
        model._load_from_state_dict = functools.partial(nn.Module._load_from_state_dict, model)
    return model  # type: ignore[no-any-return]


def _make_stem_small(model: nn.Module, name: str) -> None:
    layers = list(model.named_modules())
    first, *others = (i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Conv2d))
    path, conv = layers[first]
    if tuple(conv.stride) in ((1, 1), tuple(conv.kernel_size)):  # the latter cuts the image into patches
        raise UserError(f"`net`.small_stem is True: {name} does not begin with a strided convolution; leave it out")
    conv.stride = (1, 1)
    if conv.kernel_size[0] > 3:
        model.set_submodule(path, nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=conv.bias is not None))
    for path, layer in layers[first : others[0]]:
        if isinstance(layer, nn.MaxPool2d):
            model.set_submodule(path, nn.Identity())


class _WidthsOnCPU(TorchFunctionMode):
    """Lets RegNet read its widths from tensors also on the device meta, where its weights take no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **here | (kwargs or {}))


def _read(name: str, weights: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    known = get_model_weights(name).__members__
    try:
        if weights in known:
            state = known[weights].get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        else:
            state = torch.load(weights, weights_only=True, map_location="cpu")
    except Exception as error:  # of the network, the disk, or torch.load, which has no closed list
        way_out = f"download {known[weights].url}, and give the file" if weights in known else "give another file"
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"`net`.weights is {weights}, which cannot be read ({reason:.200}): {way_out}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str)
        and isinstance(part, Tensor)
        and (part.layout, part.device.type, part.is_quantized) == (torch.strided, "cpu", False)
        for key, part in state.items()
    ):
        raise UserError(f"`net`.weights is {weights}: must hold a state_dict, names and tensors alone")
    found: dict[str, Tensor] = dict(state)
    if odd := next((key for key, part in found.items() if not part.isfinite().all()), None):
        raise UserError(f"`net`.weights is {weights}, and its {odd} has non-finite values: give another file")
    return found
