"""Of which split and class each image is, by the names of the folders around it."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cifar_lit.data.decoding import FORMATS
from cifar_lit.data.listing import SPLITS, Found, list_images
from cifar_lit.errors import UserError

Folders = tuple[str, ...]  # the parts of a path
Listing = dict[str, dict[str, list[str]]]  # split -> class -> the names of its files, all sorted
LAYOUT = "must be a folder or archive with <class>/*, or with train/<class>/* and test/<class>/*"


def find_dataset(root: Path) -> tuple[Listing, str]:
    """Return the one dataset below a root, in which no class is missing or empty, and what is passed over.

    It may have no test split. Where the folders of the classes are not in those of splits, all is of the split train.
    """
    found = list_images(root)
    if found.damage:
        raise found.damage
    datasets = _group(found.names)
    if len(datasets) > 1:
        raise UserError(f"`root` {root} contains more than one dataset: {LAYOUT}")
    base, folders = next(iter(datasets.items()), ((), {}))
    listing: Listing = {} if datasets else {"train": _find_classes(found)}
    for folder, classes in folders.items():
        split = SPLITS[folder.lower()]
        if split in listing:
            both = " and ".join(sorted(f"{name}/" for name in folders if SPLITS[name.lower()] == split))
            raise UserError(f"`root` {root} has {both}, which are names of one split: keep one of them")
        listing[split] = dict(sorted(classes.items()))
    _check(listing, root, folders)
    used = {name for classes in listing.values() for names in classes.values() for name in names}
    if outside := [name for name in found.images if name not in used]:
        if folders and "test" not in listing:
            _check_outside(outside, base, root)
        found.passed_over["pictures outside the folders of the classes"] = outside
    return listing, found.describe()


def _group(names: Iterable[str]) -> dict[Folders, Listing]:
    """Group images by the folder that has those of the splits in it, by split (as it is written) and by class."""
    groups: dict[Folders, Listing] = defaultdict(dict)
    for name in sorted(set(names)):  # an archive may contain a file twice: the later one counts
        is_folder = name.endswith("/")
        folders = PurePosixPath(name).parts[: None if is_folder else -1]
        for depth, folder in enumerate(folders[:-1]):
            if folder.lower() in SPLITS:
                class_name = unicodedata.normalize("NFC", folders[depth + 1])  # a Mac's archives have another form
                files = groups[folders[:depth]].setdefault(folder, {}).setdefault(class_name, [])
                if not is_folder:
                    files.append(name)
    # Classes may be named train or test, and so may a folder around the dataset.
    splits_of = {base: {SPLITS[split.lower()] for split in splits} for base, splits in groups.items()}
    complete = [base for base, splits in splits_of.items() if splits >= {"train", "test"}]
    complete = complete or [base for base, splits in splits_of.items() if "train" in splits]
    outermost = [base for base in complete if not any(_is_below(base, other, groups) for other in complete)]

    def is_part(base: Folders) -> bool:
        is_around = all(any(one[: len(base) + 1] == (*base, s) for one in outermost) for s in groups[base])
        return is_around or any(_is_below(base, one, groups) for one in outermost)

    return {base: splits for base, splits in groups.items() if not is_part(base)}


def _find_classes(found: Found) -> dict[str, list[str]]:
    """Return the images of each class where only classes have folders: in the root, or below single folders in it."""
    folders_of = {name: PurePosixPath(name).parts[: None if name.endswith("/") else -1] for name in found.names}

    def below(base: Folders) -> set[Folders]:
        """Return the folders with images that lie directly in a folder."""
        return {folders_of[name][: len(base) + 1] for name in found.images if _is_inside(folders_of[name], base)}

    base: Folders = ()
    while len(single := below(base)) == 1 and below(*single):
        (base,) = single
    classes: dict[str, list[str]] = defaultdict(list)
    parts: dict[str, set[str]] = defaultdict(set)  # the splits that a class has a folder of
    for name, folders in sorted(folders_of.items()):
        if _is_inside(folders, base):
            class_name = unicodedata.normalize("NFC", folders[len(base)])
            classes[class_name] += [] if name.endswith("/") else [name]
            parts[class_name].update(SPLITS.get(folder.lower(), "") for folder in folders[len(base) + 1 :][:1])
    problem = ""
    if not found.images:
        problem = "contains no dataset"
    elif not single:
        problem = "has no folders of classes around its pictures"
    elif all(name.lower() in SPLITS for name in classes):
        problem = f"has no folders of classes in {' and '.join(f'{name}/' for name in classes)}"
    elif mixed := [name for name in classes if parts[name] >= {"train", "test"}]:
        problem = f"has train and test in {mixed[0]}/, and not {mixed[0]} in each of them"
    if problem:
        raise UserError(f"`root` {found.root} {problem}: {LAYOUT}")
    return dict(sorted(classes.items()))


def _is_inside(folders: Folders, base: Folders) -> bool:
    return len(folders) > len(base) and folders[: len(base)] == base


def _is_below(base: Folders, other: Folders, groups: dict[Folders, Listing]) -> bool:
    """Return whether a folder lies in a split of another."""
    return _is_inside(base, other) and base[len(other)] in groups[other]


def _check(listing: Listing, root: Path, folders: Iterable[str]) -> None:
    if "train" not in listing:
        raise UserError(f"`root` {root} has no train/<class>/* folders")
    for split in ("train", *listing):  # train first: the others are compared with it
        for class_name, names in listing[split].items():
            if not names:
                place = f"{split}/{class_name}" if folders else class_name
                raise UserError(f"`root` {root}: {place} contains no image ({', '.join(FORMATS)})")
            if not class_name.isprintable():
                raise UserError(f"`root` {root}: the name of the class {class_name!a} cannot be shown; rename it")
        if unmatched := ", ".join(sorted(listing[split].keys() ^ listing["train"].keys())):
            raise UserError(f"`root` {root}: not in both train and {split}: the class {unmatched}")
    if len(listing["train"]) < 2:
        raise UserError(f"`root` {root} has only one class: a classifier needs at least two")


def _check_outside(names: Iterable[str], base: Folders, root: Path) -> None:
    """Refuse pictures in a folder beside train: it may have the test images, or train be a class beside others."""
    odd = []
    for name in names:
        folders = PurePosixPath(name).parts[:-1]
        is_loose = folders == base[: len(folders)] or (
            _is_inside(folders, base) and folders[len(base)].lower() in SPLITS
        )
        if not is_loose:
            odd.append(name)
    if odd:
        shown = ", ".join(odd[:3] + ["..."] * (len(odd) > 3))
        problem = f"has train/<class>/* without test/<class>/*, and pictures in other folders ({shown})"
        raise UserError(f"`root` {root} {problem}: name that folder test, or remove it")
