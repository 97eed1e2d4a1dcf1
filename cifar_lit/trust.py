"""What a run from elsewhere may do: hold data. What imports, writes elsewhere or reaches the network needs trust."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_lit.checkpoint import plain_value
from cifar_lit.data.cifar10 import CIFAR10
from cifar_lit.data.listing import say
from cifar_lit.data.options import check_image_size
from cifar_lit.data.torchvision_sets import TorchvisionSet
from cifar_lit.datamodule import CACHE_DIR, CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.base import build_network, describe_network
from cifar_lit.networks.finding import import_network, is_ours
from cifar_lit.schema import check_arguments, is_inside

RENAMED = {"test_views": "tta"}
"""Hyper-parameters that version 0.1 called otherwise."""
MAX_CLASSES = 10_000
"""Of a model: its confusion matrix has the square of it."""


def check_settings(checkpoint: dict[str, Any], origin: Path) -> None:
    """Check the hyper-parameters of a checkpoint or an export, and give them today's names; ``net`` comes later."""
    model, data = checkpoint["hyper_parameters"], checkpoint.get("datamodule_hyper_parameters")
    if not {"classes", "net"} <= model.keys() or (data is not None and not {"source", "seed"} <= data.keys()):
        raise UserError(f"{origin} is not a checkpoint of this project: its settings belong to another one")
    model = {RENAMED.get(name, name): value for name, value in model.items()}
    classes = model["classes"]
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) and name for name in classes):
        raise UserError(f"{origin} has settings of another type: its classes must be names")
    if not 2 <= len(set(classes)) == len(classes) <= MAX_CLASSES:
        raise UserError(
            f"{origin}: `classes` must be 2 to {MAX_CLASSES:,} different names; it has {len(classes):,}, of which "
            f"{len(set(classes)):,} differ"
        )
    checkpoint["hyper_parameters"] = _plain(
        check_arguments(ImageClassifier, model, skip=("net", "classes"), origin=origin)
    )
    if data is not None:
        data = check_arguments(CIFAR10DataModule, data, skip=(), origin=origin)
        checkpoint["datamodule_hyper_parameters"] = _plain(data)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: plain_value(value) for name, value in options.items()}


def check_network(options: Mapping[str, Any], weights: Mapping[str, Tensor], *, trust: bool) -> None:
    """Import the module of a network, if its file is trusted; one of this project must have the file's weights."""
    net = describe_network(options["net"])
    if trust:
        import_network(net["class_path"])
    if not is_ours(net["class_path"]):
        return
    size = options.get("image_size", 32)
    check_image_size(size, options.get("resize", "squash"))
    with torch.device("meta"):  # first without memory, of which the options could ask for any amount
        network = build_network(net, num_classes=len(options["classes"]), image_size=size)
    for name, part in network.state_dict().items():
        if f"net.{name}" not in weights or weights[f"net.{name}"].shape != part.shape:
            raise UserError(f"the weights do not match the network: net.{name} is missing, or has another shape")


def limit_data(options: dict[str, Any], *, given: Collection[str] = ()) -> None:
    """Drop the settings of the data that reach the network or write elsewhere, which the user has to give.

    A ``cache_dir`` that is dropped is said, unless it is among the options that are ``given``.
    """
    options["mirror"] = None
    cache_dir = options.get("cache_dir")
    if cache_dir and not is_inside(cache_dir, Path()) and not is_inside(cache_dir, Path(CACHE_DIR).expanduser()):
        del options["cache_dir"]  # so that it is the default
        if "cache_dir" not in given:
            way_out = "give --trust_run or, to fit, test, validate and compare, --data.cache_dir"
            say(f"the run's cache_dir {cache_dir:.200} is not used, as only a file names it: {way_out}")


def only_read(datamodule: CIFAR10DataModule) -> None:
    """Have nothing downloaded to a folder outside the working folder, which only a file names."""
    if isinstance(datamodule.source, CIFAR10):
        datamodule.source.may_write = is_inside(datamodule.hparams["root"], Path())
    if isinstance(datamodule.source, TorchvisionSet):  # of any size
        datamodule.source.may_write = False


def check_links(folder: Path) -> None:
    """Refuse a folder to write to with what leads elsewhere, or hangs when it is opened."""
    odd = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            odd.append(f"{path} is a link to {path.readlink()}")
        elif not path.is_dir() and not path.is_file():
            odd.append(f"{path} is neither a file nor a folder")
    if odd:
        more = f"; and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise UserError(
            f"{'; '.join(odd[:5])}{more}: nothing is written in there; replace it, or give `trust` if it is yours"
        )
