"""A small archive in the official format: download, repair, refuse, read."""

import dataclasses
import hashlib
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from cifar_lit.data.cifar10 import ARCHIVE, ARCHIVES, CIFAR10, CIFAR100_ARCHIVE, Archive
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from tests.helpers.cifar10 import NAMES, pack, small_files, small_files_100
from tests.helpers.server import Behaviour, serving


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Archive]:
    """Put a small archive where a user would put it by hand."""
    content, archive = pack(small_files())
    root = tmp_path / "data"
    root.mkdir()
    (root / archive.name).write_bytes(content)
    return root, archive


@pytest.mark.parametrize(
    ("archive", "theirs"),
    [(ARCHIVE, torchvision.datasets.CIFAR10), (CIFAR100_ARCHIVE, torchvision.datasets.CIFAR100)],
    ids=["CIFAR-10", "CIFAR-100"],
)
def test_the_checksums_are_those_of_torchvision(archive: Archive, theirs: type[torchvision.datasets.CIFAR10]) -> None:
    assert (archive.md5, archive.name, archive.folder) == (theirs.tgz_md5, theirs.filename, theirs.base_folder)
    assert archive.urls[0] == theirs.url
    expected = dict([*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])])
    assert archive.members == expected
    assert all(url.startswith("https://") and f"/{archive.name}" in url for url in archive.urls)


def test_cifar100_is_read_with_its_fine_labels_as_torchvision_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, archive = pack(small_files_100())
    monkeypatch.setitem(ARCHIVES, "cifar100", archive)
    (tmp_path / archive.name).write_bytes(content)
    datamodule = CIFAR10DataModule(source="cifar100", root=str(tmp_path), batch_size=10, val_size=20)
    assert (len(set(datamodule.classes)), datamodule.source.title) == (100, "CIFAR-100")  # before any file is read
    assert datamodule.classes == sorted(datamodule.classes)
    assert CIFAR10DataModule(source="cifar100").hparams["val_size"] == 5000
    datamodule.prepare_data()
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for split, is_train in (("train", True), ("test", False)):
        theirs = torchvision.datasets.CIFAR100(str(tmp_path), train=is_train)
        ours = datamodule.source.load(split)  # type: ignore[arg-type]
        assert np.array_equal(ours.images.numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert datamodule.classes == theirs.classes
    datamodule.setup("fit")
    assert datamodule.train is not None
    assert datamodule.val is not None
    assert (len(datamodule.train.labels), len(datamodule.val.labels)) == (100, 20)


def test_an_archive_put_there_by_hand_is_read(small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = CIFAR10(root, archive=archive)
    source.prepare()
    files = {name: pickle.loads(content, encoding="bytes") for name, content in small_files().items()}
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        loaded = source.load(split)  # type: ignore[arg-type]
        assert loaded.images.dtype == torch.uint8
        assert loaded.images.shape == (4 * len(names), 32, 32, 3)
        assert loaded.images.is_contiguous()
        # Each row holds the red plane, then the green one, then the blue one.
        expected = np.concatenate([files[name][b"data"] for name in names])
        assert np.array_equal(loaded.images.permute(0, 3, 1, 2).reshape(-1, 3072).numpy(), expected)
        assert loaded.labels.tolist() == [label for name in names for label in files[name][b"labels"]]
    assert {path.name for path in root.iterdir()} == {archive.name, archive.folder, ".lock"}


def test_it_is_downloaded_from_the_mirror_first(tmp_path: Path) -> None:
    content, archive = pack(small_files())
    mirror, official = Behaviour(content), Behaviour(content)
    with serving(mirror) as url, serving(official) as other:
        archive_at = Archive(archive.name, archive.md5, (other,), archive.folder, archive.members)
        source = CIFAR10(tmp_path / "deep" / "data", mirror=url, archive=archive_at)
        source.prepare()
        source.prepare()  # nothing is left to do
    assert len(mirror.requests) == 1
    assert official.requests == []
    assert len(source.load("train").labels) == 20


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_damaged_file_of_an_earlier_extraction_is_repaired(damage: str, small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = CIFAR10(root, archive=archive)
    source.prepare()
    path = root / archive.folder / "batches.meta"
    expected = path.read_bytes()
    path.unlink() if damage == "lost" else path.write_bytes(b"x" + expected[1:])
    source.prepare()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("is_link", [False, True])
def test_a_repair_leaves_what_else_is_in_the_folder(is_link: bool, small: tuple[Path, Archive], tmp_path: Path) -> None:
    root, archive = small
    folder = tmp_path / "elsewhere" if is_link else root / archive.folder
    folder.mkdir()
    if is_link:
        (root / archive.folder).symlink_to(folder)
    for name in ("notes.txt", "batches.meta", ".test_batch.0123.part"):  # the last of a process that was killed
        (folder / name).write_text("mine")
    CIFAR10(root, archive=archive).prepare()
    assert {path.name for path in folder.iterdir()} == {*small_files(), "notes.txt"}
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(CIFAR10(root, archive=archive).load("test").labels) == 4


def test_what_is_in_the_way_of_the_folder_is_named(small: tuple[Path, Archive]) -> None:
    root, archive = small
    (root / archive.folder).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"`root` {root} cannot be written .*{archive.folder}"):
        CIFAR10(root, archive=archive).prepare()


def test_a_damaged_file_is_not_read(small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = CIFAR10(root, archive=archive)
    source.prepare()
    (root / archive.folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(UserError, match="data_batch_2 is damaged"):
        source.load("train")
    assert not Path("hacked").exists()


def test_a_wrong_archive_put_there_by_hand_is_replaced_by_a_download(small: tuple[Path, Archive]) -> None:
    root, archive = small
    content = (root / archive.name).read_bytes()
    (root / archive.name).write_bytes(b"another file")
    with serving(Behaviour(content)) as url:
        CIFAR10(root, mirror=url, archive=archive).prepare()
    assert (root / archive.name).read_bytes() == content


def test_a_damaged_archive_put_there_by_hand_is_named_and_again_if_the_download_fails(
    small: tuple[Path, Archive], capsys: pytest.CaptureFixture[str]
) -> None:
    root, archive = small
    path = root / archive.name
    path.write_bytes(path.read_bytes()[:-100])
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    expected = f"{path} is damaged, or another file: its MD5 is {md5}, not {archive.md5}"
    with pytest.raises(UserError) as raised:
        CIFAR10(root, archive=dataclasses.replace(archive, urls=("ftp://none",))).prepare()
    assert capsys.readouterr().err.startswith(f"{expected}: it is downloaded")
    assert str(raised.value).startswith(f"{expected}; {archive.name} could not be downloaded. Tried ftp://none: ")
    assert "`mirror` URL" in str(raised.value)
    assert raised.value.exit_code == 1


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_9")
    member.type, member.linkname = kind, "/etc/hostname"
    return member


@pytest.mark.parametrize(
    "extra",
    [
        lambda _: link(tarfile.SYMTYPE),
        lambda _: link(tarfile.LNKTYPE),
        lambda _: tarfile.TarInfo("../outside"),
        lambda _: tarfile.TarInfo("cifar-10-batches-py/../../outside"),
        lambda folder: tarfile.TarInfo(f"{folder}/outside"),
    ],
    ids=["symbolic link", "hard link", "..", "inner ..", "absolute"],
)
def test_only_the_known_files_are_extracted(extra: Callable[[Path], tarfile.TarInfo], tmp_path: Path) -> None:
    content, archive = pack(small_files(), [extra(tmp_path)])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive.name).write_bytes(content)
    CIFAR10(tmp_path / "data", archive=archive).prepare()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {archive.name, archive.folder, ".lock"}
    assert {path.name for path in (tmp_path / "data" / archive.folder).iterdir()} == set(small_files())
    assert not (tmp_path / "outside").exists()


def test_an_archive_without_a_known_file_is_named_and_not_read(tmp_path: Path) -> None:
    files = small_files()
    del files["test_batch"]
    content, archive = pack(files)
    (tmp_path / archive.name).write_bytes(content)
    source = CIFAR10(tmp_path, archive=archive)
    for _ in range(2):  # what was extracted is not taken for complete by the next start
        with pytest.raises(UserError, match="test_batch is missing"):
            source.prepare()


def test_half_an_archive_is_named(tmp_path: Path) -> None:
    content = pack(small_files())[0][:2000]
    archive = Archive("cifar.tar.gz", hashlib.md5(content).hexdigest(), (), "cifar-10-batches-py", {"test_batch": "0"})
    (tmp_path / archive.name).write_bytes(content)
    with pytest.raises(UserError, match=r"cifar\.tar\.gz is not a complete .* archive"):
        CIFAR10(tmp_path, archive=archive).prepare()


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"`root` .*data cannot be written"):
        CIFAR10(tmp_path / "file" / "data").prepare()
