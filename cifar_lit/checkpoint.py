"""Checkpoint files, ``.ckpt`` and ``.safetensors``: saved so that a crash cannot damage them, loaded without code."""

import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

import cifar_lit
from cifar_lit.errors import UserError, import_extra
from cifar_lit.files import write_atomic
from cifar_lit.schema import check_tensors, is_outside, leaves, read_bytes

EXPORTS = (".safetensors", ".onnx", ".pt2")
OF_START = ("weights", "freeze", "freeze_epochs")
"""Hyper-parameters of the start of a training, which an export does not have."""
_PARTS = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
_NOT_PLAIN = (pickle.PickleError, AttributeError, TypeError)
"""What torch raises for a value that cannot be pickled, or only by running code."""
_TRAINING: dict[str, Any] = {
    **{"epoch": int, "global_step": int, "world_size": int, "pytorch-lightning_version": str, "precision": str},
    **{"loops": dict, "callbacks": dict, "metrics": dict, "optimizer_states": list, "lr_schedulers": list},
}
"""What a checkpoint holds beside its ``_PARTS``; weights that were saved alone have less."""


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: if it cannot be written, an earlier one is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomic(path, lambda file: _save(checkpoint, file))
    except BaseException as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, f"{path} cannot be saved ({cause.strerror}); an earlier one is unchanged") from error


def _save(checkpoint: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write a checkpoint, and read it as ``load_checkpoint`` will, without the tensors' content."""
    try:
        torch.save(checkpoint, file)
        file.flush()
        torch.load(file.name, weights_only=True, map_location="cpu", mmap=True)
    except _NOT_PLAIN as error:
        if culprit := _not_plain(checkpoint):
            raise UserError(
                f"a checkpoint holds plain values and tensors, and {culprit}: return float(x), x.tolist() or str(x)"
            ) from error
        raise


def _not_plain(value: Any, name: str = "") -> str:
    """Return the name and type of the first part that a checkpoint cannot hold; empty if it can hold them all."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True, map_location="cpu")
    except _NOT_PLAIN:
        parts = (
            value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list | tuple) else ())
        )
        inner = (_not_plain(part, f"{name}.{key}".lstrip(".")) for key, part in parts)
        return next(filter(None, inner), f"{name} is a {type(value).__module__}.{type(value).__qualname__}")
    return ""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, on the CPU, without running any code in it.

    A checkpoint is a zip archive with a CRC-32 for each of its members; they are verified, which torch does not do.
    Whatever is wrong with the file is a ``UserError`` that names the file and the reason.
    """
    check_exists(path)
    if path.suffix in EXPORTS:
        raise UserError(f"{path} is an export, which has no training state: give the run it was made from")
    checkpoint = read_saved(path)
    if isinstance(checkpoint, dict) and checkpoint and all(isinstance(part, Tensor) for part in checkpoint.values()):
        raise UserError(f"{path} is not a checkpoint of this project: it holds only weights")
    if not (isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(part), dict) for part in _PARTS)):
        raise UserError(f"{path} is not a checkpoint of this project: its settings are missing")
    _check_parts(checkpoint, path)
    return checkpoint


def read_saved(path: Path) -> Any:
    """Read what ``torch.save`` wrote, on the CPU, if its checksums match and it holds plain values and tensors."""
    _check_zip(path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of this project: it holds more than plain values, which could run code"
        ) from error
    except Exception as error:  # torch.load has no closed list of what it raises for a file of another kind
        raise UserError(f"{path} is not a checkpoint of this project ({type(error).__name__})") from error


def _check_parts(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuse parts of another form than the Trainer's, and paths through which a callback would delete elsewhere."""
    for name, kind in _TRAINING.items():
        value = checkpoint.get(name, kind())
        if type(value) is not kind or (kind is int and value < 0):
            raise UserError(f"{path} is damaged: its {name} is not a {kind.__name__}")
    if not all(isinstance(name, str) and isinstance(part, Tensor) for name, part in checkpoint["state_dict"].items()):
        raise UserError(f"{path} is damaged: its weights are not tensors with names")
    try:
        check_tensors(checkpoint)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of this project: {error}") from error
    # ModelCheckpoint deletes the files that its state names, if their names begin with that of its folder.
    for _, text in leaves(checkpoint.get("callbacks")):
        if isinstance(text, str) and is_outside(text):
            raise UserError(f"{path} names {text[:200]!r} in the state of its callbacks, which leaves their folder")


def plain_value(value: Any) -> Any:
    """Return a value of Python's own types: numpy's would make a checkpoint unreadable under ``weights_only``."""
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def check_exists(path: Path | str) -> None:
    """Raise a ``UserError`` for a URL, or if there is no such file."""
    if url := re.match(r"(https?|s3|gs):/+(.*)", str(path)):  # a Path has lost one of its slashes
        raise UserError(f"{url[1]}://{url[2]} is a URL: download the checkpoint and give the file")
    if not os.path.isfile(path):  # noqa: PTH113 (a Path raises for a name that is too long)
        raise UserError(f"{path}: no such checkpoint")


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is NaN or infinite; None if all are finite."""
    for name, tensor in tensors:
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.layout == torch.strided):
            continue
        # The largest magnitude is finite only if all values are.
        if tensor.numel() and not bool(torch.isfinite(tensor.detach().abs().amax())):
            return name
    return None


def _check_zip(path: Path) -> None:
    """Refuse a file that ``torch.save`` did not write, or whose checksums do not match."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise UserError(f"{path} is not a checkpoint of this project: it is empty")
    if start != b"PK\3\4":
        what = "another kind of file, or of torch before 1.6: in that case load it with torch and save it again"
        raise UserError(f"{path} is not a checkpoint of this project: it is {what}")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = sum(part.file_size for part in archive.infolist())
            if sizes > path.stat().st_size:  # torch compresses nothing
                raise UserError(f"{path} is not a checkpoint of this project: it is compressed, to {sizes:,} bytes")
            damaged = archive.testzip()
            # torch sets no attributes, and silently takes a member with that of a folder for one.
            damaged = damaged or next((part.filename for part in archive.infolist() if part.external_attr), None)
    except UserError:
        raise
    except Exception as error:  # zipfile raises half a dozen types for bytes that are not a zip archive
        raise UserError(f"{path} is damaged or truncated ({type(error).__name__}: {error})") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged: checksum mismatch in {damaged}")


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error: torch raises one of its own after it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


class SafeCheckpointIO(TorchCheckpointIO):
    """Lets Lightning use the functions above.

    Lightning itself writes to ``$TMPDIR`` and moves the file over the earlier one without a flush (#21253, #21744).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert storage_options is None
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def save_safetensors(path: Path, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a model's hyper-parameters and weights: ``path``, with ``config.json`` beside it."""
    safetensors = import_extra("safetensors.torch", extra="export")
    # Copied, because safetensors takes no weights that share memory, such as tied ones.
    parts = {name: part.clone(memory_format=torch.contiguous_format) for name, part in weights.items()}
    data = safetensors.save(parts, {"format": "pt"})
    config = {
        "architecture": options["net"]["class_path"].rpartition(".")[2],
        "num_classes": len(options["classes"]),
        "id2label": dict(enumerate(options["classes"])),
        "image_size": options.get("image_size", 32),
        "resize": options.get("resize", "squash"),
        "sha256": hashlib.sha256(data).hexdigest(),
        "cifar_lit_version": cifar_lit.__version__,
        "hyper_parameters": {name: value for name, value in options.items() if name not in OF_START},
    }
    write_atomic(path, data)
    write_atomic(path.with_name("config.json"), json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def load_safetensors(path: Path) -> dict[str, Any]:
    """Read what ``save_safetensors`` wrote, as ``hyper_parameters`` and ``state_dict``, or raise a ``UserError``."""
    safetensors = import_extra("safetensors.torch", extra="export")
    config_path = path.with_name("config.json")
    try:
        config = json.loads(read_bytes(config_path))
        options, expected = dict(config["hyper_parameters"]), str(config["sha256"])
        if not {"net", "classes"} <= options.keys():
            raise KeyError("net")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{config_path} does not describe a model of this project ({type(error).__name__}: {error})"
        ) from error
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise UserError(f"{path} is damaged, or does not belong to {config_path}: checksum mismatch")
    try:
        weights = safetensors.load(data)
    except Exception as error:  # SafetensorError, and what torch raises for shapes and types that the header claims
        raise UserError(f"{path} is damaged: {error}") from error
    return {"hyper_parameters": options, "state_dict": weights}
