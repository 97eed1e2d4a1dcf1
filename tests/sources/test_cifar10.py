"""The official archive, in a small form: download, repair, refuse, read."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from cifar_lit.sources.cifar10 import ARCHIVE, CLASSES, Archive, Cifar10
from tests.sources.server import Behaviour, serving

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def small_files(num_images: int = 4) -> dict[str, bytes]:
    """Make files in the official format, with a few random images each."""
    rng = np.random.default_rng(0)
    files = {}
    for name in NAMES:
        data = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, num_images).tolist()
        files[name] = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CLASSES]}, protocol=2)
    return files


def pack(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> tuple[bytes, Archive]:
    """Pack files into an archive, and know its sums."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra or []:
            tar.addfile(member)
    md5 = hashlib.md5(buffer.getvalue()).hexdigest()
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_files().items()}
    return buffer.getvalue(), Archive("cifar.tar.gz", md5, (), "cifar-10-batches-py", sums)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Archive]:
    """Put the small archive where a user would put it by hand."""
    content, archive = pack(small_files())
    root = tmp_path / "data"
    root.mkdir()
    (root / archive.name).write_bytes(content)
    return root, archive


def test_the_facts_are_those_that_torchvision_has() -> None:
    theirs = torchvision.datasets.CIFAR10
    assert (ARCHIVE.md5, ARCHIVE.name, ARCHIVE.folder) == (theirs.tgz_md5, theirs.filename, theirs.base_folder)
    assert ARCHIVE.urls[0] == theirs.url
    expected = dict([*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])])
    assert ARCHIVE.members == expected


def test_an_archive_put_there_by_hand_is_taken_and_read_as_its_makers_meant(small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = Cifar10(root, archive=archive)
    source.prepare()
    files = {name: pickle.loads(content, encoding="bytes") for name, content in small_files().items()}
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        loaded = source.load(split)  # type: ignore[arg-type]
        assert loaded.images.dtype == torch.uint8
        assert loaded.images.shape == (4 * len(names), 3, 32, 32)
        # Each row holds the red plane, then the green one, then the blue one.
        expected = np.concatenate([files[name][b"data"] for name in names])
        assert np.array_equal(loaded.images.reshape(-1, 3072).numpy(), expected)
        assert loaded.labels.tolist() == [label for name in names for label in files[name][b"labels"]]
    assert {path.name for path in root.iterdir()} == {archive.name, archive.folder, ".lock"}


def test_it_is_downloaded_from_the_mirror_first(tmp_path: Path) -> None:
    content, archive = pack(small_files())
    mirror, official = Behaviour(content), Behaviour(content)
    with serving(mirror) as url, serving(official) as other:
        facts = Archive(archive.name, archive.md5, (other,), archive.folder, archive.members)
        source = Cifar10(tmp_path / "deep" / "data", mirror=url, archive=facts)
        source.prepare()
        source.prepare()  # nothing is left to do
    assert len(mirror.requests) == 1
    assert official.requests == []
    assert len(source.load("train").labels) == 20


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_damaged_file_of_an_earlier_extraction_is_repaired(damage: str, small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = Cifar10(root, archive=archive)
    source.prepare()
    path = root / archive.folder / "batches.meta"
    expected = path.read_bytes()
    path.unlink() if damage == "lost" else path.write_bytes(b"x" + expected[1:])
    source.prepare()
    assert path.read_bytes() == expected


def test_a_damaged_file_is_not_read(small: tuple[Path, Archive]) -> None:
    root, archive = small
    source = Cifar10(root, archive=archive)
    source.prepare()
    (root / archive.folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(RuntimeError, match="data_batch_2 is damaged"):
        source.load("train")
    assert not Path("hacked").exists()


def test_a_wrong_archive_put_there_by_hand_is_replaced_by_a_download(small: tuple[Path, Archive]) -> None:
    root, archive = small
    content = (root / archive.name).read_bytes()
    (root / archive.name).write_bytes(b"another file")
    with serving(Behaviour(content)) as url:
        Cifar10(root, mirror=url, archive=archive).prepare()
    assert (root / archive.name).read_bytes() == content


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_9")
    member.type, member.linkname = kind, "/etc/hostname"
    return member


@pytest.mark.parametrize(
    "extra",
    [
        lambda: link(tarfile.SYMTYPE),
        lambda: link(tarfile.LNKTYPE),
        lambda: tarfile.TarInfo("../outside"),
        lambda: tarfile.TarInfo("cifar-10-batches-py/../../outside"),
        lambda: tarfile.TarInfo("/tmp/outside"),
    ],
    ids=["symbolic link", "hard link", "..", "inner ..", "absolute"],
)
def test_a_member_that_leaves_the_folder_is_refused(extra: Callable[[], tarfile.TarInfo], tmp_path: Path) -> None:
    content, archive = pack(small_files(), [extra()])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive.name).write_bytes(content)
    with pytest.raises(ValueError, match="a link or a path that leaves its folder: refused"):
        Cifar10(tmp_path / "data", archive=archive).prepare()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {archive.name, ".lock"}
    assert not (tmp_path / "outside").exists()


def test_an_archive_without_a_known_file_leaves_nothing_half_installed(tmp_path: Path) -> None:
    files = small_files()
    del files["test_batch"]
    content, archive = pack(files)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / archive.name).write_bytes(content)
    with pytest.raises(ValueError, match="test_batch is missing or damaged"):
        Cifar10(tmp_path / "data", archive=archive).prepare()
    assert not (tmp_path / "data" / archive.folder).exists()


def test_a_file_that_only_claims_to_be_an_archive_is_named(tmp_path: Path) -> None:
    content = pack(small_files())[0][:2000]
    archive = Archive("cifar.tar.gz", hashlib.md5(content).hexdigest(), (), "cifar-10-batches-py", {"test_batch": "0"})
    (tmp_path / archive.name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar\.tar\.gz cannot be extracted"):
        Cifar10(tmp_path, archive=archive).prepare()


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RuntimeError, match=r"--data\.root .*data cannot be written"):
        Cifar10(tmp_path / "file" / "data").prepare()
