"""torchvision's datasets: which there are, files in their official formats, downloads, what is refused."""

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from torchvision import datasets

from cifar_lit.data import torchvision_sets
from cifar_lit.data.decoding import fit_image
from cifar_lit.data.torchvision_sets import TorchvisionSet, find_dataset
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.run import Run
from tests.helpers.runs import RUN, Refused, read_results
from tests.helpers.server import Behaviour, serving
from tests.helpers.torchvision_sets import random_images, usps, write_emnist_letters, write_eurosat_zip, write_mnist

ROOT = Path("data")


def source(name: str) -> TorchvisionSet:
    return TorchvisionSet(ROOT, name=name, cache_dir=Path("cache"))


class Toy(datasets.FakeData):  # type: ignore[misc]
    """torchvision's random images, with the arguments of its other datasets."""

    def __init__(
        self, root: str, train: bool = True, transform: Any = None, target_transform: Any = None, download: bool = False
    ) -> None:
        super().__init__(40 if train else 12, (3, 20, 24), 4, random_offset=0 if train else 100)
        self.class_to_idx = {"a": 0, "b": 1, "c": 2, "d": 3}


class ToyWithVal(datasets.FakeData):  # type: ignore[misc]
    def __init__(self, root: str, split: str = "train", transform: Any = None, target_transform: Any = None) -> None:
        splits = ("train", "valid", "test", "unlabelled")
        datasets.utils.verify_str_arg(split, "split", splits)
        super().__init__(40, (1, 9, 9), 4, random_offset=1000 * splits.index(split))


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the toys to torchvision; one thread decodes, as FakeData seeds torch for each image."""
    for toy in (Toy, ToyWithVal):
        monkeypatch.setattr(datasets, toy.__name__, toy, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def known() -> set[str]:
    with pytest.raises(UserError) as raised:
        find_dataset("?")
    return set(str(raised.value).partition("must be one of ")[2].split(", "))


def test_one_is_downloaded_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--data.source", "torchvision", "--data.dataset", "Toy"]) == 0
    assert capsys.readouterr().out == f"Toy is decoded in {Path.home() / '.cache/cifar_lit'}\n"
    toy = ["--data.source", "torchvision", "--data.dataset", "Toy", "--data.mirror", "https://mirror.example/"]
    for command in (["download", *toy], ["fit", *toy], ["fit", "--data.source", "synthetic", *toy[4:]]):
        assert main(command) == 2
        assert "--data.mirror is https://mirror.example/: must be left out: source" in capsys.readouterr().err


def test_the_sets_with_classes_are_found_and_no_others() -> None:
    found = known()
    assert found >= {
        *("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "USPS", "SVHN", "STL10", "GTSRB", "Flowers102", "DTD"),
        *("OxfordIIITPet", "Food101", "FGVCAircraft", "CIFAR10", "CIFAR100", "PCAM", "RenderedSST2", "Country211"),
        *("Imagenette", "EuroSAT", "SUN397", "SEMEION", "Caltech256", "StanfordCars", "FER2013", "Toy", "ToyWithVal"),
    }
    others = {
        "CelebA",
        "VOCDetection",
        "Kitti",
        "WIDERFace",
        "ImageFolder",
        "FakeData",
        "LFWPairs",
        "CLEVRClassification",
    }
    assert not found & (others | {"Cityscapes", "Omniglot", "Kinetics", "SBU", "LSUNClass", "Places365", "INaturalist"})


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("GTSRB", {"train": "train", "test": "test"}),
        ("Flowers102", {"train": "train", "val": "val", "test": "test"}),
        ("Country211", {"train": "train", "val": "valid", "test": "test"}),
        ("FGVCAircraft", {"train": "train", "val": "val", "test": "test"}),
        ("OxfordIIITPet", {"train": "trainval", "test": "test"}),  # whose "trainval" has no part of its own
        ("Imagenette/160px", {"train": "train", "test": "val"}),  # the only other split is not for validation
        ("STL10", {"train": "train", "test": "test"}),
    ],
)
def test_the_splits_of_a_set(name: str, splits: dict[str, str]) -> None:
    made = source(name)
    assert {split: options["split"] for split, options in made._splits.items()} == splits
    assert made.has_val == ("val" in splits)
    assert made.title == name
    assert not ROOT.exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion-mnist", ", USPS; did you mean fashionmnist?"),
        ("CelebA", "`dataset` is CelebA: must be one of CIFAR10, CIFAR100, Caltech101, "),
        (
            "EMNIST",
            "`dataset` is EMNIST: must be one of EMNIST/byclass, EMNIST/bymerge, EMNIST/balanced, EMNIST/letters, ",
        ),
        ("emnist/leters", "EMNIST/mnist; did you mean letters?"),
        ("MNIST/letters", "`dataset` is MNIST/letters: must be one of MNIST"),
        ("FGVCAircraft/wing", "one of FGVCAircraft/variant, FGVCAircraft/family, FGVCAircraft/manufacturer"),
        ("../MNIST", "`dataset` is ../MNIST: must be one of CIFAR10"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(name: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        source(name)
    assert expected in str(raised.value)


def test_one_source_and_its_dataset_belong_together() -> None:
    with pytest.raises(UserError, match="`source` is cifar10: must be torchvision for `dataset` MNIST"):
        CIFAR10DataModule(dataset="MNIST")
    for dataset in (None, ""):
        with pytest.raises(
            UserError, match=r"`dataset` is .*: must be the name of one of torchvision's, such as MNIST"
        ):
            CIFAR10DataModule(source="torchvision", dataset=dataset)


def test_each_image_is_what_torchvision_gives() -> None:
    data = CIFAR10DataModule(source="torchvision", dataset="toy", root=str(ROOT), val_size=0, batch_size=4)
    assert data.classes == ["a", "b", "c", "d"]
    assert data.source.title == "Toy"
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    for split, theirs in ((data.train, Toy("", True)), (data.test, Toy("", False))):
        assert split is not None
        assert torch.equal(split.images, torch.from_numpy(np.stack([fit_image(image) for image, _ in theirs])))
        assert split.labels.tolist() == [label for _, label in theirs]
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_a_split_for_validation_is_used_and_grey_has_three_channels() -> None:
    data = CIFAR10DataModule(source="torchvision", dataset="ToyWithVal", batch_size=4)
    assert data.has_val
    data.setup("fit")
    assert data.val is not None
    assert len(data.val.labels) == len(data.train.labels) == 40  # type: ignore[union-attr]
    images = source("ToyWithVal").load("val").images
    assert np.array_equal(images[0].numpy(), fit_image(ToyWithVal("", "valid")[0][0]))
    assert torch.equal(images[..., :1].expand_as(images), images)
    assert data.classes == ["0", "1", "2", "3"]  # numbers, as it has no names


def test_mnist_from_the_archives_that_lie_there(monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(ROOT, pack=True)
    files = sorted((ROOT / "MNIST/raw").iterdir())
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in files]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    made = source("mnist")
    assert made.classes[0] == "0 - zero"
    train, test = made.load("train"), made.load("test")
    assert train.labels.tolist() == [i % 10 for i in range(40)]
    expected = [fit_image(Image.fromarray(image)) for image in random_images(20, 28, 28, seed=20)]
    assert np.array_equal(test.images.numpy(), np.stack(expected))
    assert not list(ROOT.glob(".*unfinished"))

    ROOT.rename("gone")  # from now on the decoded images are enough
    made = source("MNIST")
    made.may_write = False
    assert torch.equal(made.load("train").images, train.images)


def test_labels_that_begin_at_one_and_a_class_without_images() -> None:
    write_emnist_letters(ROOT)
    made = source("EMNIST/letters")
    assert made.title == "EMNIST/letters"
    assert made.classes == list("abcdefghijklmnopqrstuvwxy")
    assert made.load("test").labels.tolist() == [*range(25)] * 2


def test_svhn_in_the_format_of_matlab(monkeypatch: pytest.MonkeyPatch) -> None:
    ROOT.mkdir()
    images = random_images(32, 32, 3, 30)
    files = {}
    for split in ("train", "test"):
        path = ROOT / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images, "y": (np.arange(30) % 10 + 1)[:, None].astype(np.uint8)})
        files[split] = ["http://127.0.0.1:9/x", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)
    made = source("SVHN")
    assert made.classes == list("0123456789")
    assert made.load("test").labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.array_equal(made.load("train").images.numpy(), images.transpose(3, 0, 1, 2))


def test_usps_is_downloaded_and_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    body = usps()
    md5 = hashlib.md5(body).hexdigest()
    with serving(Behaviour(body, statuses=[404])) as url:
        files = {"train": [url, "usps.bz2", md5], "test": [url, "usps.t.bz2", md5]}
        monkeypatch.setattr(datasets.USPS, "split_list", files)
        with pytest.raises(
            UserError, match=r"`root` data: torchvision neither finds nor downloads USPS: HTTP Error 404"
        ):
            source("USPS").prepare()
        made = source("USPS")
        made.prepare()
    assert len(made.classes) == len(made.load("test").labels) // 2 == 10


def test_an_interrupted_unpacking_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision takes the folder that is there for all of it."""
    write_eurosat_zip(ROOT)

    def interrupted(from_path: str, to_path: str, _: None) -> None:
        with zipfile.ZipFile(from_path) as archive:
            archive.extractall(to_path, archive.namelist()[:25])
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.utils, "check_md5", lambda *_: True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.utils._ARCHIVE_EXTRACTORS, ".zip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            source("EuroSAT").prepare()
    assert len(datasets.EuroSAT("data")) == 25
    made = source("EuroSAT")
    assert made.classes == ["Forest", "River", "SeaLake"]
    train, test = made.load("train"), made.load("test")  # it has no test split
    assert len(train.labels) + len(test.labels) == 30
    assert set(test.labels.tolist()) == {0, 1, 2}
    assert not list(ROOT.glob(".*unfinished"))


def test_a_process_that_waited_does_not_unpack_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may be reading what it would write."""

    class Unpacked(Toy):
        def __init__(self, root: str, train: bool = True, target_transform: Any = None, download: bool = False) -> None:
            if not Path(root, "unpacked").exists():
                raise RuntimeError("Dataset not found")
            assert not download
            super().__init__(root, train)

    @contextlib.contextmanager
    def waiting(root: Path, _: str) -> Iterator[None]:
        root.mkdir()
        (root / "unpacked").touch()  # by the process that had the lock
        yield

    monkeypatch.setattr(datasets, "Unpacked", Unpacked, raising=False)
    monkeypatch.setattr(torchvision_sets, "writing", waiting)
    assert len(source("Unpacked")._open()["train"]) == 40
    assert not list(ROOT.glob(".*unfinished"))


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (
            lambda: (ROOT / "eurosat/2750/River/River_3.jpg").write_bytes(b"x"),
            "EuroSAT: image 13 of train, or its class, ",
        ),
        (
            lambda: None,
            "EuroSAT: image 0 of train, or its class, cannot be used ('NoneType' object cannot be interpreted",
        ),
    ],
)
def test_a_broken_image_or_label_is_named(
    break_it: Callable[[], object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_eurosat_zip(ROOT)
    with zipfile.ZipFile(ROOT / "eurosat/EuroSAT.zip") as archive:
        archive.extractall(ROOT / "eurosat")
    if break_it() is None:
        monkeypatch.setattr(datasets.EuroSAT, "__getitem__", lambda *_: (Image.new("L", (9, 9)), None))
    with pytest.raises(UserError) as raised:
        source("EuroSAT").prepare()
    assert expected in str(raised.value)


@pytest.mark.parametrize("name", ["h5py", "scipy"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(Toy):
        def __init__(self, root: str, split: str = "train", target_transform: Any = None) -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(datasets, "Needy", Needy, raising=False)
    with pytest.raises(UserError, match=f"`dataset` Needy: needs {name}: pip install {name}"):
        source("Needy")


def test_names_that_occur_twice_or_have_synonyms() -> None:
    toy = Toy("")
    toy.classes = [("crane", "bird"), "kite", ("kite",), "unused"]
    assert torchvision_sets._class_names(toy, [0, 1, 2, 7]) == ["crane, bird", "kite 1", "kite 2", "7"]


OPTIONS = ["--data.batch_size", "8", "--trainer.max_epochs", "1", "--no_report"]


def test_a_run_trains_tests_and_resumes(refused: Refused, tmp_path: Path) -> None:
    """A class of FashionMNIST has a slash in its name."""
    write_mnist(ROOT, name="FashionMNIST")
    data = ["--data.source", "torchvision", "--data.dataset", "fashionmnist"]
    assert main(["fit", *data, *OPTIONS]) == 0
    results = read_results()
    assert (results["source"], results["title"]) == ("torchvision", "FashionMNIST")
    counts = {name: results[f"num_{name}"] for name in ("train", "val", "test", "classes")}
    assert counts == {"train": 30, "val": 10, "test": 20, "classes": 10}
    assert "ClassAccuracy/test/T-shirt/top" in results
    assert main(["test", str(RUN)]) == 0
    resume = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "2"]

    # Without decoded images, what only a file names is neither read nor downloaded.
    (tmp_path / "home/.cache").rename("gone")
    for args in (["test", str(RUN)], resume):
        code, line = refused(args)
        assert code == 2
        assert "data: FashionMNIST is not decoded yet, and only a file names it: give it" in line
    assert not (ROOT / ".lock").exists()
    assert not (tmp_path / "home/.cache").exists()
    assert Run(RUN).datamodule(root=str(ROOT)).classes[0] == "T-shirt/top"
    assert main([*resume, "--data.root", "data"]) == 0


def test_torchvision_is_imported_for_these_sets_alone() -> None:
    assert not [name for name, value in vars(torchvision_sets).items() if value in (torchvision, datasets)]
