"""The cache of decoded images: damage is noticed, and other users are kept out."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.errors import UserError
from tests.helpers.images import tiny_files, write_files

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_files(tmp_path / "pictures", tiny_files(3, 1))


def load(root: Path) -> ImageFolder:
    source = ImageFolder(root, cache_dir=Path("cache"))
    source.load("train")
    return source


def entry_folder() -> Path:
    (folder,) = Path("cache").iterdir()
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train", lambda entry: entry["images"].view(-1)[77:78].bitwise_xor_(1)),
        ("train", lambda entry: entry["images"][2:4].zero_()),
        ("train", lambda entry: entry.update(labels=entry["labels"].flip(0))),
        ("train", lambda entry: entry.update(images=entry["images"].view(9, -1)[:, :3072].view(9, 3, 32, 32))),
        ("train", lambda entry: entry.pop("checksum")),
        ("index", lambda entry: entry["classes"]["train"].reverse()),
    ],
    ids=["bit", "zeros", "labels", "shape", "no checksum", "classes"],
)
def test_what_changed_in_the_cache_is_noticed_said_and_decoded_again(
    name: str, change: Change, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load(root)
    path = entry_folder() / f"{name}.pt"
    entry = torch.load(path, weights_only=True)
    change(entry)
    torch.save(entry, path)
    capsys.readouterr()
    again = load(root)
    assert again.classes == expected.classes
    assert all(map(torch.equal, again.load("train"), expected.load("train")))
    said = [line for line in capsys.readouterr().err.splitlines() if "Decoding" not in line and line]
    assert said == [f"{path} is damaged: the images are decoded again"]
    assert torch.load(path, weights_only=True).keys() >= {"checksum"}


def test_a_flipped_bit_in_the_file_is_noticed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load(root).load("train").images.clone()
    path = entry_folder() / "train.pt"
    content = bytearray(path.read_bytes())
    content[content.index(expected.numpy().tobytes()[:64]) + 5000] ^= 16
    path.write_bytes(content)
    assert torch.equal(load(root).load("train").images, expected)
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error"), MemoryError()],
)
def test_a_failure_of_the_machine_is_not_taken_for_damage(
    error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(root)

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", failing)
    capsys.readouterr()
    with pytest.raises(type(error)):
        load(root)
    assert "damaged" not in capsys.readouterr().err


def test_it_is_private_and_what_is_not_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root)
    folder = entry_folder()
    assert [path.stat().st_mode & 0o777 for path in (Path("cache"), folder)] == [0o700, 0o700]
    for mode in (0o770, 0o702):
        folder.chmod(mode)
        with pytest.raises(UserError, match=r"`cache_dir` cache: \w+ in it can be written by other users"):
            load(root)
    folder.chmod(0o755)
    load(root)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    if user:
        with pytest.raises(UserError, match=r"belongs to another user: remove it or give another"):
            load(root)
    else:
        load(root)  # what root filled may be shared
        os.chown(folder, 12345, -1)
        with pytest.raises(UserError, match=r"belongs to another user: remove it or give another"):
            load(root)


def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path) -> None:
    load(root)
    folder = entry_folder()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is no folder: remove it or give another"):
        load(root)
    folder.unlink()
    folder.mkdir(0o700)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in ("index.pt", "train.pt"):
        (folder / name).symlink_to(victim)
    load(root)
    assert victim.read_text() == "kept"
    assert not (folder / "train.pt").is_symlink()


def test_what_is_passed_over_is_said_at_each_start(root: Path, tmp_path: Path) -> None:
    (root / "train" / "dark" / "notes.txt").touch()
    load(root)
    index = torch.load(entry_folder() / "index.pt", weights_only=True)
    assert index["passed_over"] == f"passed over in {root}: 1 not pictures (train/dark/notes.txt)"
