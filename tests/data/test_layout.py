"""Images in folders of classes alone, and a training split without a test split: what is taken, what is refused."""

from pathlib import Path

import pytest

from cifar_lit.data.layout import find_dataset
from cifar_lit.errors import UserError
from tests.helpers.images import put


def files(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, b"x")


@pytest.mark.parametrize("where", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("prefix", ["", "pets/", "some/where/"])
def test_folders_of_classes_are_a_dataset(where: str, prefix: str, tmp_path: Path) -> None:
    names = [f"{prefix}{name}" for name in ("cat/1.jpg", "cat/siamese/2.png", "dog/1.jpg", "train/1.jpg")]
    others = files("__MACOSX/cat/._1.jpg", f"{prefix}dog/.DS_Store", f"{prefix}.git/1.png")
    listing, passed_over = find_dataset(put(where, tmp_path, files(*names) | others))
    assert listing == {"train": {"cat": names[:2], "dog": [names[2]], "train": [names[3]]}}
    assert ": 3 hidden (" in passed_over


def test_what_is_beside_the_folders_is_passed_over(tmp_path: Path) -> None:
    names = ("cover.jpg", "notes/a.txt", "pets/cover.jpg", "pets/a.txt", "pets/cat/1.jpg", "pets/dog/1.jpg")
    listing, passed_over = find_dataset(put("zip", tmp_path, files(*names)))
    assert list(listing["train"]) == ["cat", "dog"]
    assert "2 pictures outside the folders of the classes (cover.jpg, pets/cover.jpg)" in passed_over


@pytest.mark.parametrize("prefix", ["", "pets/", "test/"])
def test_a_training_split_may_be_all_there_is(prefix: str, tmp_path: Path) -> None:
    # The loose ones are of a contest: nobody knows their classes.
    names = [f"{prefix}{name}" for name in ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg", "val/dog/2.jpg")]
    root = put("tar", tmp_path, files(*names, f"{prefix}test1/notes.txt", f"{prefix}testing/7.jpg", "loose.jpg"))
    listing, passed_over = find_dataset(root)
    assert listing == {
        "train": {"cat": [names[0]], "dog": [names[1]]},
        "val": {"cat": [names[2]], "dog": [names[3]]},
    }
    assert "2 pictures outside the folders of the classes" in passed_over


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.jpg", "2.jpg"], "has no folders of classes around its pictures: must be a folder or archive with <class>"),
        (["pets/a.txt"], "contains no dataset: must be a folder or archive with <class>"),
        (["cat/1.jpg"], "has only one class: a classifier needs at least two"),
        (["pets/cat/1.jpg", "pets/1.jpg"], "has only one class: a classifier needs at least two"),
        (["cat/1.jpg", "dog/1.jpg", "notes/a.txt"], r"pictures\.zip: notes contains no image \(JPEG"),
        (["cat/1.jpg", "do\x1bg/1.jpg"], "the name of the class 'do.*' cannot be shown"),
        (["train/1.jpg"], "has no folders of classes in train/: must be"),
        (["Train/1.jpg", "test/1.jpg"], "has no folders of classes in Train/ and test/: must be"),
        (["cat/train/1.jpg", "cat/test/2.jpg", "dog/1.jpg"], "has train and test in cat/, and not cat in each of them"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "tset/a/1.jpg", "1.jpg"],
            r"and pictures in other folders \(tset/a/1.jpg\)",
        ),
        (
            ["train/vw/1.jpg", "train/ice/1.jpg", "car/1.jpg", "bus/1.jpg"],
            r"other folders \(bus/1.jpg, car/1.jpg\): name",
        ),
        (["test/cat/1.jpg", "test/dog/1.jpg"], "has no train/<class>"),
    ],
)
def test_what_may_be_meant_otherwise_is_refused(names: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as error:
        find_dataset(put("zip", tmp_path, files(*names)))
    assert "\n" not in str(error.value)
