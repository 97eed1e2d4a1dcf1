"""The options of the data module: their ranges."""

from typing import Any, get_args

from cifar_lit.data.augment import Flip
from cifar_lit.data.decoding import Resize
from cifar_lit.data.duplicates import Duplicates
from cifar_lit.errors import require

MINIMUMS = {"batch_size": 1, "val_size": 0, "split_seed": 0, "seed": 0, "crop_padding": 0, "cutout": 0}


def check_options(options: dict[str, Any]) -> None:
    """Raise a ``UserError`` for an option outside its range."""

    def check(name: str, is_valid: object, expected: str) -> None:
        require(name, options[name], bool(is_valid), expected)

    for name, minimum in MINIMUMS.items():
        check(name, options[name] >= minimum, f"at least {minimum}")
        check(name, isinstance(options[name], int) or name == "val_size", "a whole number")
    source, dataset, sizes, image_size = (options[n] for n in ("source", "dataset", "image_sizes", "image_size"))
    check("source", dataset is None or source == "torchvision", f"torchvision for `dataset` {dataset}")
    check("dataset", dataset or source != "torchvision", "the name of one of torchvision's, such as MNIST")
    check_mirror(options["mirror"], source)
    check_image_size(image_size, options["resize"])
    check("crop_padding", options["crop_padding"] < image_size, f"less than {image_size}, the image size")
    check("cutout", options["cutout"] <= image_size, f"at most {image_size}, the image size")
    check("image_sizes", all(isinstance(size, int) and size >= 8 for size in sizes), "sizes of at least 8")
    if image_size != 32 and sizes and sizes[-1] != image_size:
        scaled = [max(8, round(size * image_size / sizes[-1])) for size in sizes]
        check("image_sizes", False, f"sizes that end with `image_size`, as {scaled}, or [] for none")
    for name, choices in (("flip", get_args(Flip)), ("duplicates", get_args(Duplicates))):
        check(name, options[name] in choices, f"one of {', '.join(choices)}")
    is_fraction = isinstance(options["val_size"], float)
    check("val_size", not is_fraction or options["val_size"] < 1, "a whole number of images, or a fraction below 1")
    for name in ("brightness", "contrast", "saturation", "erasing"):
        check(name, 0 <= options[name] <= 1, "from 0 to 1")
    for name in ("mixup", "cutmix"):
        check(name, options[name] == 0 or 0.01 <= options[name] <= 100, "0, or from 0.01 to 100")


def check_mirror(mirror: str | None, source: str) -> None:
    """Raise a ``UserError`` for a mirror of a source that downloads no archive of ours."""
    is_used = mirror is None or source in ("cifar10", "cifar100")
    require("mirror", mirror, is_used, f"left out: source {source} has no archive to download")


def check_image_size(image_size: int, resize: str) -> None:
    """Raise a ``UserError`` for a size, or a way to get to it, that there is not."""
    is_size = isinstance(image_size, int) and 8 <= image_size <= 256
    require("image_size", image_size, is_size, "a whole number of pixels from 8 to 256")
    require("resize", resize, resize in get_args(Resize), f"one of {', '.join(get_args(Resize))}")


def default_val_size(source: str) -> int | None:
    """Return how many images are held out for validation; None for a tenth of each class."""
    return None if source in ("images", "torchvision") else 5000


def whole_number(value: float | None) -> float | None:
    """Return 5000 for 5000.0, as which the command line reads it on some versions of Python; a fraction stays one."""
    return int(value) if isinstance(value, float) and 1 < value < 1e9 and value.is_integer() else value


def scaled(number: int, image_size: int) -> int:
    """Return how many images have as many pixels as a number of 32x32, at least one."""
    return max(1, number * 32 * 32 // image_size**2)
