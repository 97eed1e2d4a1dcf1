"""What is an image, of which split and class, and what is said of the rest."""

import io
from pathlib import Path

import pytest
from PIL import Image

from cifar_lit.data import make_source
from cifar_lit.data.layout import find_dataset
from cifar_lit.data.listing import is_archive, list_images, looks_like_images, say
from cifar_lit.errors import UserError
from tests.helpers.images import encode, put, tiny_files, tiny_image, write_files

PNG = encode(tiny_image("dark", 1), ".png")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    tiny_image("dark", 1).save(buffer, kind)
    return buffer.getvalue()


def dataset(*names: str, train: str = "train", test: str = "test") -> dict[str, bytes]:
    names = names or tuple(f"{split}/{name}/1.png" for split in (train, test) for name in ("cat", "dog"))
    return dict.fromkeys(names, PNG)


@pytest.mark.parametrize("where", ["folder", "zip", "tar.gz"])
def test_an_image_is_known_by_its_content_and_the_rest_is_counted(where: str, tmp_path: Path) -> None:
    images = {f"train/cat/{kind}": encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")}
    images |= {"train/cat/a.jfif": b"broken", "train/cat/b.TIF": b"", "train/cat/deep/er/c.dat": PNG}
    others = {
        "train/cat/notes.txt": b"P5 is not an image, and neither",
        "train/cat/bmw.md": b"BM is a text",
        "train/cat/a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "train/cat/empty": b"",
        "train/cat/.DS_Store": b"x",
        "__MACOSX/train/cat/._1.png": b"x",
        "more/1.png": PNG,
        "train/loose.png": PNG,
    }
    listing, passed_over = find_dataset(put(where, tmp_path, dataset() | images | others))
    assert set(listing["train"]["cat"]) == {*images, "train/cat/1.png"}
    assert "4 not pictures (" in passed_over
    assert "2 hidden (" in passed_over
    assert "2 pictures outside the folders of the classes (more/1.png, train/loose.png)" in passed_over


def test_nothing_is_said_if_nothing_is_passed_over_and_names_are_made_printable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_files(tmp_path / "a", dataset())
    assert find_dataset(root)[1] == ""
    for number in range(5):
        (root / f"{number}\x1b[31m.txt").touch()
    say(find_dataset(root)[1])
    assert f"passed over in {root}: 5 not pictures (0\\x1b[31m.txt, " in capsys.readouterr().err
    assert find_dataset(root)[1].endswith(", ...)")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "VAL", "TEST"), ("training", "valid", "testing"), ("train", "validation", "test")],
)
def test_the_usual_names_of_splits(train: str, val: str, test: str, tmp_path: Path) -> None:
    files = dataset(train=train, test=test) | dataset(f"{val}/cat/1.png", f"{val}/dog/x/y/1.png")
    listing, passed_over = find_dataset(write_files(tmp_path, files))
    assert sorted(listing) == ["test", "train", "val"]
    assert all(list(classes) == ["cat", "dog"] for classes in listing.values())
    assert not passed_over


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (dataset() | dataset("val/cat/1.png", "valid/cat/1.png"), "has val/ and valid/, which are names of one split"),
        (dataset() | dataset("Train/cat/1.png"), "has Train/ and train/, which"),
        (dataset() | dataset("copy/train/cat/1.png"), "contains more than one dataset"),
        (dataset("x/train/cat/1.png", "y/test/cat/1.png"), "contains more than one dataset"),
        (dataset("train/da\x1brk/1.png", "test/da\x1brk/1.png"), "name of the class 'da\\\\x1brk' cannot be shown"),
    ],
)
def test_ambiguity_is_refused(files: dict[str, bytes], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        find_dataset(put("tar", tmp_path, files))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("train/train/1.png", "train/car/1.png", "test/train/1.png", "test/car/1.png"), ["car", "train"]),
        (("train/train/1.png", "train/test/1.png", "test/train/1.png", "test/test/1.png"), ["test", "train"]),
        (("test/train/a/1.png", "test/train/b/1.png", "test/test/a/1.png", "test/test/b/1.png"), ["a", "b"]),
        (("train/a/val/1.png", "train/b/1.png", "test/a/test/x/1.png", "test/b/1.png"), ["a", "b"]),
    ],
)
def test_classes_and_folders_may_be_named_like_splits(
    names: tuple[str, ...], classes: list[str], tmp_path: Path
) -> None:
    listing, passed_over = find_dataset(put("zip", tmp_path, dataset(*names)))
    assert list(listing["train"]) == list(listing["test"]) == classes
    assert not passed_over


def test_a_damaged_archive_is_listed_as_far_as_it_goes_but_is_no_dataset(tmp_path: Path) -> None:
    path = put("tar", tmp_path, tiny_files(2, 1))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"test/")])
    found = list_images(path)
    assert len(found.images) == 6
    assert "empty header" in str(found.damage)
    with pytest.raises(UserError, match="empty header"):
        find_dataset(path)


def test_an_archive_is_known_by_its_content_unless_it_has_the_name_of_an_image(tmp_path: Path) -> None:
    for kind in ("zip", "tar", "tar.gz"):
        path = put(kind, tmp_path, dataset())
        assert is_archive(path)
        assert is_archive(path.rename(tmp_path / "archive"))
        assert not is_archive((tmp_path / "archive").rename(tmp_path / "image.png"))
    write_files(tmp_path, {"half.zip": b"PK", "text": b"text"})
    assert is_archive(tmp_path / "half.zip")  # so that what is wrong with it is said
    assert not is_archive(tmp_path / "text")
    assert not is_archive(tmp_path / "nowhere.zip")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Training/cat/1.png"], True),
        (["pets/train/cat/1.png"], True),
        (["cat/1.png", "dog/1.JPG"], True),
        (["1.webp"], True),
        (["pets/1.png", "MNIST/raw/images.gz"], False),
        (["cifar-10-batches-py/data_batch_1"], False),
        (["pets/train/1.png", "cifar-10-batches-py/data_batch_1"], False),
        (["cat/1.png", "dog/1.png", "lightning_logs/version_0/config.yaml"], True),
        (["notes.txt"], False),
        (["imagenette2/train/n01/1.JPEG", "imagenette2.tgz"], False),  # where torchvision unpacked a set
        (["country211/valid/AD/1.jpg", "country211.tgz", "pets/train/cat/1.png"], False),
        (["imagenette2/train/n01/1.JPEG", "imagenette2.txt"], True),
    ],
)
def test_images_given_as_cifar10_are_noticed_and_other_folders_are_not(
    names: list[str], expected: bool, tmp_path: Path
) -> None:
    root = write_files(tmp_path / "data", dict.fromkeys(names, b"x"))
    before = sorted(root.rglob("*"))
    assert looks_like_images(root) == expected
    if expected:
        with pytest.raises(UserError, match="set `source` to images as well, or give another folder for CIFAR-10"):
            make_source("cifar10", root=root, cache_dir=tmp_path)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("where", ["folder", "zip"])
def test_runs_and_files_of_the_system_are_no_class(where: str, tmp_path: Path) -> None:
    others = {"lightning_logs/version_0/config.yaml": b"x", "cat/Thumbs.db": b"x", "cat/desktop.ini": b"x"}
    listing, passed_over = find_dataset(put(where, tmp_path, dataset("cat/1.png", "dog/1.png") | others))
    assert listing == {"train": {"cat": ["cat/1.png"], "dog": ["dog/1.png"]}}
    assert passed_over.endswith(": 2 hidden (cat/Thumbs.db, cat/desktop.ini)")


@pytest.mark.parametrize("there", ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"])
def test_pictures_beside_the_archive_of_cifar_or_what_is_in_it_do_not_matter(there: str, tmp_path: Path) -> None:
    root = write_files(tmp_path / "data", {"1.png": PNG, "train/cat/1.png": PNG})
    with pytest.raises(UserError, match="looks like images of your own"):
        make_source("cifar10", root=root, cache_dir=tmp_path)
    write_files(root, {there: b"x"})
    assert make_source("cifar10", root=root, cache_dir=tmp_path).title == "CIFAR-10"
    with pytest.raises(UserError, match="looks like images of your own"):
        make_source("cifar100", root=root, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_of_cifar_the_folder_is_given_and_not_what_is_in_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / name
    write_files(path.parent, {name if path.suffix else f"{name}/data_batch_1": b"x"})
    with pytest.raises(UserError, match=rf"`root` {path} is CIFAR-10 itself: give its folder, {path.parent}$"):
        make_source("cifar10", root=path, cache_dir=tmp_path)


def test_huge_pictures_without_a_name_are_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (140, 130)).save(tmp_path / "huge", "PNG")
    assert list_images(tmp_path).images == ["huge"]
