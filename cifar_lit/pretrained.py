"""A model as others exchange it: ``model.safetensors``, with ``config.json`` beside it."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cifar_lit
from cifar_lit.parser import import_extra


def write_pretrained(path: Path, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a model.

    Args:
        path: The file of the weights; ``config.json`` is written beside it.
        options: The hyper-parameters of its module, as plain values.
        weights: Its ``state_dict``.
    """
    safetensors = import_extra("safetensors.torch", extra="export")
    data = safetensors.save({name: part.contiguous() for name, part in weights.items()}, {"format": "pt"})
    config = {
        "architecture": options["net"]["class_path"].rpartition(".")[2],
        "num_classes": len(options["classes"]),
        "id2label": dict(enumerate(options["classes"])),
        "image_size": 32,
        "sha256": hashlib.sha256(data).hexdigest(),
        "cifar_lit_version": cifar_lit.__version__,
        "hyper_parameters": dict(options),
    }
    path.write_bytes(data)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    path.with_name("config.json").write_text(text + "\n", encoding="utf-8")


def read_pretrained(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model.

    Args:
        path: The file of the weights.

    Returns:
        The hyper-parameters of its module, and its weights.

    Raises:
        ValueError: If one of the two files is missing, damaged or another's.
    """
    safetensors = import_extra("safetensors.torch", extra="export")
    config_path = path.with_name("config.json")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        options, expected = dict(config["hyper_parameters"]), str(config["sha256"])
        module_name = str(options["net"]["class_path"]).rpartition(".")[0]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config_path} is not that of a model of this project ({type(error).__name__}: {error})"
        ) from error
    # An export may come from anywhere: only what is known already is imported for it.
    if not module_name.startswith("cifar_lit.networks.") and module_name not in sys.modules:
        raise ValueError(f"{config_path} names a network of {module_name}: import that first, if you trust it")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path} is damaged, or not the one that {config_path} is of: the checksum does not fit")
    weights: dict[str, Tensor] = safetensors.load(data)
    for name, part in weights.items():
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise ValueError(f"{path} is of no use: {name} has values that are not finite")
    return options, weights
