"""Checkpoint files: complete or not there, checked when they are read, and never run."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar_lit.checkpoint import (
    SafeCheckpointIO,
    load_checkpoint,
    load_safetensors,
    plain_value,
    save_checkpoint,
    save_safetensors,
)
from cifar_lit.errors import UserError
from cifar_lit.main import main
from tests.helpers.processes import Evil
from tests.helpers.runs import FEW_EPOCHS, RUN

CHECKPOINT: dict[str, Any] = {
    "state_dict": {"net.weight": torch.linspace(-1, 1, 5000)},
    "hyper_parameters": {"classes": ["a", "b"], "net": {}},
    "datamodule_hyper_parameters": {"source": "images", "seed": 0},
    "pytorch-lightning_version": "2.6.6",
}


def save_with(path: Path, **parts: Any) -> None:
    torch.save({**CHECKPOINT, **parts}, path)


def cut(path: Path, size: int) -> None:
    save_checkpoint(CHECKPOINT, path)
    path.write_bytes(path.read_bytes()[:size])


def spoilt(value: float) -> dict[str, Any]:
    """Return weights with one value that is not finite."""
    return {"net.bias": torch.zeros(3), "net.weight": torch.tensor([[1.0, value, -1.0]])}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new/last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"].pop("net.weight"), CHECKPOINT["state_dict"]["net.weight"])
    assert loaded == {**CHECKPOINT, "state_dict": {}}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(missing_ok=True), "no such checkpoint"),
    "folder": (lambda path: path.mkdir(), "no such checkpoint"),
    "empty": (lambda path: path.touch(), "it is empty"),
    "text": (lambda path: path.write_text("no checkpoint"), "it is another kind of file"),
    "truncated": (lambda path: cut(path, 10_000), "is damaged or truncated"),
    "truncated early": (lambda path: cut(path, 5), "is damaged or truncated"),
    "code": (lambda path: save_with(path, hyper_parameters=Evil()), "which could run code"),
    "weights": (lambda path: torch.save(CHECKPOINT["state_dict"], path), "it holds only weights"),
    "foreign": (lambda path: torch.save({"state_dict": {}, "epoch": 3}, path), "its settings are missing"),
    "a list": (lambda path: torch.save([1, 2], path), "its settings are missing"),
    "nothing": (lambda path: torch.save({}, path), "its settings are missing"),
    "settings of another form": (lambda path: save_with(path, hyper_parameters=[1, 2]), "its settings are missing"),
    "weights of another form": (lambda path: save_with(path, state_dict=[]), "its settings are missing"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_checkpoint_is_named_with_its_reason(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    make, reason = BAD[name]
    make(path)
    with pytest.raises(UserError, match=r"bad\.ckpt") as refused:
        load_checkpoint(path)
    assert reason in str(refused.value)
    assert not Path("evil").exists()


@pytest.mark.parametrize("url", ["http://host/a.ckpt", "https://host/a.ckpt", "s3://bucket/a.ckpt"])
def test_a_url_is_not_a_file(url: str) -> None:
    with pytest.raises(UserError, match=f"{url} is a URL: download the checkpoint and give the file"):
        load_checkpoint(Path(url))


def test_an_export_has_no_training_state(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(UserError, match=r"model.onnx is an export, which has no training state"):
        load_checkpoint(path)


def test_a_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    complete = path.read_bytes()
    start = complete.index(CHECKPOINT["state_dict"]["net.weight"].numpy().tobytes())
    for place in (start, start + 9_999, start + 19_999):
        path.write_bytes(complete[:place] + bytes([complete[place] ^ 1]) + complete[place + 1 :])
        with pytest.raises(UserError, match=r"is damaged: checksum mismatch in .*data/0"):
            load_checkpoint(path)


def test_no_flipped_bit_of_the_archive_ends_in_a_traceback_or_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    complete = path.read_bytes()
    directory = complete.index(b"PK\1\2")
    for place in range(directory, len(complete), 3):
        path.write_bytes(complete[:place] + bytes([complete[place] ^ (1 << place % 8)]) + complete[place + 1 :])
        try:
            loaded = load_checkpoint(path)
        except UserError as refused:
            assert "last.ckpt is" in str(refused)  # noqa: PT017
        else:
            assert torch.equal(loaded["state_dict"]["net.weight"], CHECKPOINT["state_dict"]["net.weight"])


def test_an_interrupted_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(file: int) -> None:
        raise KeyboardInterrupt

    save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({**CHECKPOINT, "state_dict": {}}, tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert load_checkpoint(tmp_path / "last.ckpt")["state_dict"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(OSError, match=r"last.ckpt cannot be saved \(.*File too large.*an earlier one is unchanged"):
            save_checkpoint(CHECKPOINT, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_fit_saves_and_resumes_with_it(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("save_checkpoint", "load_checkpoint"):
        function = getattr(SafeCheckpointIO, name)

        @functools.wraps(function)
        def count(*args: Any, name: str = name, function: Callable[..., Any] = function, **options: Any) -> Any:
            seen.append(name)
            return function(*args, **options)

        monkeypatch.setattr(SafeCheckpointIO, name, count)
    assert main(["fit", *tiny_args, *FEW_EPOCHS]) == 0
    assert set(seen) == {"save_checkpoint"}
    assert sorted(file.name for file in (RUN / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert set(seen) == {"save_checkpoint", "load_checkpoint"}


def test_plain_values_of_numpys_types() -> None:
    values = plain_value([np.float64(0.5), (np.int64(3), "a"), None])
    assert values == [0.5, [3, "a"], None]
    assert [type(value) for value in (values[0], values[1][0])] == [float, int]


# Exports.

OPTIONS: dict[str, Any] = {"classes": ["a", "ü"], "net": {"class_path": "cifar_lit.networks.tutorial.TutorialCNN"}}


def export(path: Path, value: float = 0.5) -> Path:
    pytest.importorskip("safetensors")
    save_safetensors(path / "model.safetensors", OPTIONS, spoilt(value))
    return path / "model.safetensors"


def test_an_export_is_loaded(tmp_path: Path) -> None:
    loaded = load_safetensors(export(tmp_path))
    assert loaded["hyper_parameters"] == OPTIONS
    assert loaded["state_dict"].keys() == {"net.bias", "net.weight"}
    assert torch.equal(loaded["state_dict"]["net.weight"], spoilt(0.5)["net.weight"])
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "a", "1": "ü"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_tied_weights_are_exported_under_each_name(tmp_path: Path) -> None:
    weights = torch.arange(8.0).view(1, 2, 2, 2).to(memory_format=torch.channels_last)
    save_safetensors(tmp_path / "model.safetensors", OPTIONS, {"a": weights, "b": weights, "part": weights[0, 0]})
    loaded = load_safetensors(tmp_path / "model.safetensors")["state_dict"]
    assert loaded.keys() == {"a", "b", "part"}
    assert torch.equal(loaded["a"], weights)
    assert torch.equal(loaded["b"], weights)


def test_a_bad_export_is_named_with_its_reason(tmp_path: Path) -> None:
    path = export(tmp_path)
    content, config = path.read_bytes(), path.with_name("config.json")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model.safetensors is damaged, or .*: checksum mismatch"):
        load_safetensors(path)
    path.write_bytes(content)
    for text in ("{", "[]", '{"sha256": 3}', '{"sha256": "", "hyper_parameters": {}}'):
        config.write_text(text)
        with pytest.raises(UserError, match=r"config.json does not describe a model of this project"):
            load_safetensors(path)
    config.unlink()
    with pytest.raises(UserError, match=r"config.json does not describe a model of this project"):
        load_safetensors(path)
