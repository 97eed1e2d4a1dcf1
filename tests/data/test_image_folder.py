"""Images from a folder and from archives: what is read, what is cached, what is refused."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lit.data import archives, image_folder
from cifar_lit.data.decoding import read_image, read_rgb
from cifar_lit.data.image_folder import ImageFolder
from cifar_lit.data.listing import say
from cifar_lit.errors import UserError
from tests.helpers.images import TINY_CLASSES, encode, put, tiny_files, tiny_image, write_files


def source(root: Path) -> ImageFolder:
    return ImageFolder(root, cache_dir=Path("cache"))


@pytest.mark.parametrize("where", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("prefix", ["", "some/where/"])
def test_a_folder_and_every_archive_give_the_same_pictures(where: str, prefix: str, tmp_path: Path) -> None:
    files = tiny_files(num_train=6, num_test=3)
    others = {
        "README.txt": b"x",
        "train/bright/notes.txt": b"x",
        "__MACOSX/train/bright/._0.jpg": b"x",
        "train/dark/.hidden.png": b"x",
    }
    made = source(put(where, tmp_path, {f"{prefix}{name}": content for name, content in (files | others).items()}))
    assert made.classes == list(TINY_CLASSES)
    assert not made.has_val
    for split, count in (("train", 6), ("test", 3)):
        loaded = made.load(split)  # type: ignore[arg-type]
        assert loaded.images.dtype == torch.uint8
        assert loaded.images.shape == (3 * count, 32, 32, 3)
        assert loaded.labels.tolist() == [label for label in range(3) for _ in range(count)]
        names = sorted(name for name in files if name.startswith(split))
        expected = [read_image(io.BytesIO(files[name])) for name in names]
        assert np.array_equal(loaded.images.numpy(), np.stack(expected))


def test_a_val_folder_is_a_split_of_its_own(tmp_path: Path) -> None:
    files = tiny_files(4, 2)
    files |= {name.replace("test/", "val/"): content for name, content in files.items() if name.startswith("test")}
    made = source(write_files(tmp_path / "pictures", files))
    assert made.has_val
    assert torch.equal(made.load("val").images, made.load("test").images)


@pytest.mark.parametrize("where", ["folder", "zip"])
def test_what_was_decoded_is_not_decoded_again_until_it_changes(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files(4, 2)
    root = put(where, tmp_path, files)
    first = source(root).load("train")
    decoded = []

    def counting(file: io.BytesIO) -> object:
        decoded.append(file)
        return read_rgb(file)

    monkeypatch.setattr(image_folder, "read_rgb", counting)
    again = source(root).load("train")
    assert not decoded
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)

    changed = files | {"train/dark/0.jpg": encode(tiny_image("bright", 0), ".jpg"), "train/dark/new.png": b""}
    changed["train/dark/new.png"] = encode(tiny_image("green", 3), ".png")
    put(where, tmp_path, changed)
    renewed = source(root).load("train")
    assert len(decoded) == len(renewed.labels) == len(first.labels) + 1
    assert float(renewed.images[4].float().mean()) > 150  # what was dark is bright


def test_what_is_written_beside_the_pictures_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    root = write_files(
        tmp_path / "pictures", {name: encode(tiny_image("dark", i), ".png") for i, name in enumerate(names)}
    )
    first = source(root).load("train")
    monkeypatch.setattr(image_folder, "read_rgb", None)
    others = ("lightning_logs/version_0/hparams.yaml", "cat/.DS_Store", "dog/Thumbs.db", ".idea/x", "nohup.out")
    write_files(root, dict.fromkeys(others, b"x"))
    os.utime(root / "cat", (1, 1))
    assert torch.equal(source(root).load("train").images, first.images)
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="empty contains no image"):
        source(root)


def test_a_folder_beside_those_of_the_splits_may_be_written_to(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writing(file: io.BytesIO) -> object:
        write_files(tiny_root, {"logs/train.log": os.urandom(9), f"out/{os.urandom(4).hex()}": b"x"})
        return read_rgb(file)

    monkeypatch.setattr(image_folder, "read_rgb", writing)
    assert len(source(tiny_root).load("train").labels)
    monkeypatch.setattr(image_folder, "read_rgb", None)
    assert len(source(tiny_root).load("train").labels)  # of the cache


def test_the_content_of_an_archive_is_read_once_to_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = Mock(wraps=image_folder._fingerprint)
    monkeypatch.setattr(image_folder, "_fingerprint", fingerprint)
    source(put("zip", tmp_path, tiny_files(3, 1))).load("train")
    assert fingerprint.call_count == 1


def test_a_cache_among_the_pictures_is_refused_unless_it_is_hidden(tiny_root: Path) -> None:
    for name in ("train/cache", "."):
        with pytest.raises(UserError, match=r"`cache_dir` .* lies among the images of `root` .*tiny: give another"):
            ImageFolder(tiny_root, cache_dir=tiny_root / name)
    for name in ("train/.cache", "cache"):  # the second lies beside the splits
        assert ImageFolder(tiny_root, cache_dir=tiny_root / name).classes


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80\x04N."])
@pytest.mark.parametrize("name", ["train.pt", "index.pt"])
def test_a_damaged_cache_is_made_anew(name: str, content: bytes, tiny_root: Path) -> None:
    images = source(tiny_root).load("train").images.clone()  # from the file that is damaged here
    (entry,) = [path for path in Path("cache").iterdir() if path.is_dir()]
    (entry / name).write_bytes(content)
    again = source(tiny_root).load("train")
    assert torch.equal(again.images, images)


def test_two_roots_do_not_share_a_cache(tmp_path: Path) -> None:
    one = write_files(tmp_path / "one", tiny_files(2, 1))
    other = write_files(tmp_path / "other", tiny_files(3, 1))
    assert len(source(one).load("train").labels) == 6
    assert len(source(other).load("train").labels) == 9
    assert len(source(one).load("train").labels) == 6


def test_a_cache_that_cannot_be_written_is_named(tiny_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"`cache_dir` .*file cannot be written"):
        ImageFolder(tiny_root, cache_dir=tmp_path / "file")


def test_a_filled_cache_is_read_without_writing_to_it(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source(tiny_root).load("train")

    def forbidden(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(archives, "FileLock", forbidden)  # a shared cache may be read-only
    assert torch.equal(source(tiny_root).load("train").images, first.images)


def change(*, drop: str = "", add: dict[str, bytes] | None = None) -> Callable[[], dict[str, bytes]]:
    def changed() -> dict[str, bytes]:
        kept = {name: content for name, content in tiny_files(2, 1).items() if not (drop and name.startswith(drop))}
        return kept | (add or {})

    return changed


@pytest.mark.parametrize("where", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (change(drop="t"), "contains no dataset"),
        (change(drop="train/"), "has no train/<class>"),
        (change(drop="test/dark"), "not in both train and test: the class dark"),
        (change(drop="train/dark"), "not in both train and test: the class dark"),
        (change(add={"val/blue/1.png": b"x"}), "not in both train and val: the class blue, bright, dark, green"),
        (change(drop="test/dark", add={"test/dark/a.txt": b"x"}), "test/dark contains no image"),
        (change(add={"copy/train/a/1.png": b"x"}), "contains more than one dataset"),
    ],
)
def test_an_incomplete_dataset_is_named(
    where: str, files: Callable[[], dict[str, bytes]], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        source(put(where, tmp_path, files() or {"README": b""}))
    assert not Path("cache").exists()


def test_an_empty_class_folder_is_named(tiny_root: Path) -> None:
    (tiny_root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match="train/empty contains no image"):
        source(tiny_root)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    files = {name: content for name, content in tiny_files(2, 1).items() if "dark" in name}
    with pytest.raises(UserError, match="only one class"):
        source(write_files(tmp_path / "pictures", files))


@pytest.mark.parametrize("where", ["folder", "zip", "tar.gz"])
def test_a_broken_picture_is_named_and_nothing_is_cached(where: str, tmp_path: Path) -> None:
    root = put(where, tmp_path, tiny_files(3, 1) | {"train/dark/1.png": b"not a picture"})
    made = source(root)
    with pytest.raises(UserError, match=r"train/dark/1\.png is not an image; repair or remove it"):
        made.load("train")
    assert not list(Path("cache").rglob("train.pt"))
    assert len(made.load("test").labels) == 3


@pytest.mark.parametrize("where", ["folder", "tar"])
def test_all_broken_pictures_are_named_at_once(where: str, tmp_path: Path) -> None:
    broken = {f"train/dark/b{number:02}.jfif": b"text" for number in range(12)}
    made = source(put(where, tmp_path, tiny_files(3, 1) | broken))
    with pytest.raises(UserError) as raised:
        made.load("train")
    message = str(raised.value)
    assert message.count("is not an image") == 10
    assert ": train/dark/b00.jfif is not an image; train/dark/b01.jfif is" in message
    assert message.endswith("; and 2 more; repair or remove these 12 of 21 pictures in train")


def test_a_damaged_member_of_an_archive_is_named(tmp_path: Path) -> None:
    files = tiny_files(3, 1)
    root = put("zip", tmp_path, files)
    content = root.read_bytes()
    root.write_bytes(content.replace(files["train/dark/1.png"][-20:], bytes(20), 1))
    with pytest.raises(UserError, match=r"zip: train/dark/1\.png cannot be read \(Bad CRC-32.*; repair or remove it$"):
        source(root).load("train")


def test_the_root_is_a_folder_or_an_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("text")
    for name in ("pipe", "text"):
        with pytest.raises(UserError, match=f"`root` .*{name} is neither a folder nor a complete .tar"):
            source(tmp_path / name)


@pytest.mark.parametrize("where", ["folder", "zip", "tar"])
@pytest.mark.parametrize("when", ["before it is listed", "before it is decoded", "while it is decoded"])
def test_a_dataset_that_changes_meanwhile_is_refused_and_not_cached(
    where: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files(3, 1)
    root = put(where, tmp_path, files)
    if when == "before it is listed":
        source(root)  # its classes are in the cache
    made = source(root)

    def change() -> None:
        if where == "folder":
            shutil.rmtree(root)
        # With another class in place of one.
        put(where, tmp_path, {name.replace("/green/", "/grass/"): content for name, content in files.items()})

    def reading(file: io.BytesIO) -> object:
        if not changed:
            changed.append(True)
            change()
        return read_rgb(file)

    changed: list[bool] = []
    if when == "while it is decoded":
        monkeypatch.setattr(image_folder, "read_rgb", reading)
        monkeypatch.setattr("os.cpu_count", lambda: 1)
    else:
        change()
    with pytest.raises(UserError, match=r"`root` .*pictures.* changed meanwhile: start again$") as raised:
        made.load("train")
    assert raised.value.exit_code == 1
    assert not list(Path("cache").rglob("train.pt"))
    assert source(root).classes == ["bright", "dark", "grass"]


def test_a_file_too_large_for_a_picture_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 50_000)
    for where in ("zip", "tar.gz"):
        root = put(where, tmp_path, tiny_files(2, 1) | {"train/dark/9.png": bytes(60_000)})
        with pytest.raises(UserError, match=r"9\.png has 60,000 bytes"):
            source(root).load("train")


@pytest.mark.parametrize("name", ["pictures.zip", "pictures.tar.gz"])
def test_half_an_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = put(name.removeprefix("pictures."), tmp_path, tiny_files(3, 1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is not a complete"):
        source(path)


def test_nothing_at_the_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`root` .*nowhere: no such folder or archive"):
        source(tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("where", ["zip", "tar"])
def test_of_a_file_that_an_archive_holds_twice_the_later_one_counts(where: str, tmp_path: Path) -> None:
    path = put(where, tmp_path, tiny_files(2, 1))
    content = encode(tiny_image("bright", 5), ".jpg")
    if where == "zip":
        with zipfile.ZipFile(path, "a") as zipped:
            zipped.writestr("train/dark/0.jpg", content)
    else:
        with tarfile.open(path, "a") as tarred:
            member = tarfile.TarInfo("train/dark/0.jpg")
            member.size = len(content)
            tarred.addfile(member, io.BytesIO(content))
    train = source(path).load("train")
    assert len(train.labels) == 6
    assert np.array_equal(train.images[2].numpy(), read_image(io.BytesIO(content)))


def test_many_that_start_at_once_on_an_empty_cache_all_get_the_pictures(tiny_root: Path) -> None:
    expected = source(tiny_root).load("train").images
    for path in Path("cache").rglob("*"):
        if path.is_file():
            path.unlink()
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: source(tiny_root).load("train"), range(16)))
    assert all(torch.equal(split.images, expected) for split in loaded)
    (entry,) = [path for path in Path("cache").iterdir() if path.is_dir()]
    assert {path.name for path in entry.iterdir()} <= {"index.pt", "train.pt", ".lock"}


def test_links_to_nothing_and_encrypted_archives(tiny_root: Path, tmp_path: Path) -> None:
    (tiny_root / "train" / "dark" / ".#lock.png").symlink_to("nowhere")
    assert len(source(tiny_root).load("train").labels) == 60
    path = put("zip", tmp_path, tiny_files(2, 1))
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + place] |= 1  # the bit that says: encrypted
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        source(path).load("train")


def test_links_in_an_archive_are_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pictures.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in tiny_files(2, 1).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("train/dark/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        link = tarfile.TarInfo("train/dark/hard.png")
        link.type, link.linkname = tarfile.LNKTYPE, "train/dark/0.jpg"
        archive.addfile(link)
    say.cache_clear()
    assert len(source(path).load("train").labels) == 6
    expected = f"passed over in {path}: 2 links in an archive (unpack it) (train/dark/link.png, train/dark/hard.png)"
    assert expected in capsys.readouterr().err


def test_huge_pictures_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    root = write_files(tmp_path / "pictures", tiny_files(2, 1) | {"test/dark/1.png": file.getvalue()})
    with pytest.raises(UserError, match="has 81,000,000 pixels"):
        source(root).load("test")


@pytest.mark.slow  # tests/cli/test_fit.py reads a part of them
@pytest.mark.realdata
def test_the_second_start_with_real_images_decodes_nothing(
    real_images: Path, real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageFolder(real_images, cache_dir=real_cache)
    expected = {"train": len(first.load("train").labels), "test": len(first.load("test").labels)}
    monkeypatch.setattr("cifar_lit.data.image_folder.read_rgb", None)
    second = ImageFolder(real_images, cache_dir=real_cache)
    loaded = {"train": second.load("train"), "test": second.load("test")}
    mean = loaded["train"].images.float().mean((0, 1, 2)) / 255  # reads every byte
    assert {name: len(split.labels) for name, split in loaded.items()} == expected
    assert expected["train"] == 50_000
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.001)
