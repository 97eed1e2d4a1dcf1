"""Checkpoints: whole or not there, checked when they are read, and never run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.checkpoint import SafeCheckpointIO, hyper_parameters, load_checkpoint, save_checkpoint
from cifar_lit.cli import main
from cifar_lit.report import read_curves
from tests.conftest import FEW_EPOCHS, RUN

CHECKPOINT: dict[str, Any] = {
    "state_dict": {"net.weight": torch.linspace(-1, 1, 5000)},
    "hyper_parameters": {"classes": ["a", "b"], "net": {}},
    "datamodule_hyper_parameters": {"source": "images", "seed": 0},
    "pytorch-lightning_version": "2.6.6",
}


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("evil",)


def save_with(path: Path, **parts: Any) -> None:
    torch.save({**CHECKPOINT, **parts}, path)


def cut(path: Path, size: int) -> None:
    save_checkpoint(CHECKPOINT, path)
    path.write_bytes(path.read_bytes()[:size])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new/last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["net.weight"], CHECKPOINT["state_dict"]["net.weight"])
    assert hyper_parameters(load_checkpoint(path), path) == (
        CHECKPOINT["hyper_parameters"],
        CHECKPOINT["datamodule_hyper_parameters"],
    )
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(missing_ok=True), "there is no such checkpoint"),
    "folder": (lambda path: path.mkdir(), "there is no such checkpoint"),
    "empty": (lambda path: path.touch(), "it is empty"),
    "text": (lambda path: path.write_text("no checkpoint"), "it is another kind of file"),
    "cut off": (lambda path: cut(path, 10_000), "is damaged or was cut off"),
    "cut off early": (lambda path: cut(path, 5), "is damaged or was cut off"),
    "code": (lambda path: save_with(path, hyper_parameters=Evil()), "which could run code"),
    "weights": (lambda path: torch.save(CHECKPOINT["state_dict"], path), "it holds weights alone"),
    "foreign": (lambda path: torch.save({"state_dict": {}, "epoch": 3}, path), "its settings are missing"),
    "a list": (lambda path: torch.save([1, 2], path), "its settings are missing"),
    "NaN": (
        lambda path: save_with(path, state_dict={"net.weight": torch.tensor([1.0, float("nan")])}),
        "net.weight is not a number (NaN)",
    ),
    "nothing": (lambda path: torch.save({}, path), "its settings are missing"),
    "settings of another form": (lambda path: save_with(path, hyper_parameters=[1, 2]), "its settings are missing"),
    "weights of another form": (lambda path: save_with(path, state_dict=[]), "its settings are missing"),
    "other settings": (lambda path: save_with(path, hyper_parameters={"width": 3}), "those of another one"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_checkpoint_is_named_with_its_reason(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    make, reason = BAD[name]
    make(path)
    with pytest.raises(ValueError, match=r"bad\.ckpt") as refused:
        hyper_parameters(load_checkpoint(path), path)
    assert reason in str(refused.value)
    assert not Path("evil").exists()


def test_a_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    whole = path.read_bytes()
    start = whole.index(CHECKPOINT["state_dict"]["net.weight"].numpy().tobytes())
    for place in (start, start + 9_999, start + 19_999):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"the checksum of .* does not fit"):
            load_checkpoint(path)


def test_no_flipped_bit_of_the_archive_ends_in_a_traceback_or_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(CHECKPOINT, path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\1\2")
    for place in range(directory, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            loaded = load_checkpoint(path)
        except ValueError as refused:
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
        with pytest.raises(OSError, match=r"last.ckpt cannot be saved \(.*File too large.*an earlier one is as it was"):
            save_checkpoint(CHECKPOINT, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def flush(file: int) -> None:
        done.append("flush")
        fsync(file)

    def rename(part: Path, path: Path) -> Path:
        done.append("rename")
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert done == ["flush", "rename", "flush"]


def test_a_fit_saves_and_loads_with_it(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    save, load = SafeCheckpointIO.save_checkpoint, SafeCheckpointIO.load_checkpoint

    def count_save(io: SafeCheckpointIO, *args: Any, **options: Any) -> None:
        seen.add("save")
        save(io, *args, **options)

    def count_load(io: SafeCheckpointIO, *args: Any, **options: Any) -> dict[str, Any]:
        seen.add("load")
        return load(io, *args, **options)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", count_save)
    monkeypatch.setattr(SafeCheckpointIO, "load_checkpoint", count_load)
    main(["fit", *tiny_args, *FEW_EPOCHS])
    assert seen == {"save", "load"}
    assert sorted(file.name for file in (RUN / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_of_equally_accurate_epochs_the_one_with_the_least_loss_is_the_best(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--trainer.max_epochs", "12", "--data.batch_size", "8", "--model.lr", "0.03", "--no_report"]
    main(["fit", *tiny_args, *options])
    curves = read_curves(RUN)
    accuracies, losses = dict(curves["Accuracy/val"]), dict(curves["Loss/val"])
    best = [epoch for epoch in accuracies if accuracies[epoch] == max(accuracies.values())]
    assert len(best) > 1
    epoch = min(best, key=lambda epoch: losses[epoch])
    assert epoch > best[0]
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] == epoch
    results = json.loads((RUN / "results.json").read_text())
    assert results["best_epoch"] == epoch + 1
    assert results["Loss/val"] == pytest.approx(losses[epoch], abs=1e-5)
    assert f"best.ckpt, of epoch {epoch + 1}\n" in capsys.readouterr().out
    # All images of all epochs, in the time outside validation, whichever epoch was tested.
    assert results["images_per_second"] * results["train_seconds"] >= 12 * 48
