"""The options of the data module: their ranges."""

from typing import Any, get_args

from cifar_lit.data.augment import Flip
from cifar_lit.errors import require


def check_options(options: dict[str, Any]) -> None:
    """Raise a ``UserError`` for an option outside its range."""
    minimums = {"batch_size": 1, "val_size": 0, "split_seed": 0, "seed": 0, "crop_padding": 0, "cutout": 0}
    for name, minimum in minimums.items():
        require(name, options[name], options[name] >= minimum, f"at least {minimum}")
        is_number = isinstance(options[name], int) or name == "val_size"
        require(name, options[name], is_number, "a whole number")
    padding, sizes, val_size = (options[name] for name in ("crop_padding", "image_sizes", "val_size"))
    require("crop_padding", padding, padding < 32, "less than 32, the image size")
    require("cutout", options["cutout"], options["cutout"] <= 32, "at most 32, the image size")
    require("image_sizes", sizes, all(isinstance(size, int) and size >= 8 for size in sizes), "sizes of at least 8")
    require("flip", options["flip"], options["flip"] in get_args(Flip), f"one of {', '.join(get_args(Flip))}")
    is_fraction = isinstance(val_size, float)
    require("val_size", val_size, not is_fraction or val_size < 1, "a whole number of images, or a fraction below 1")
    for name in ("brightness", "contrast", "saturation", "erasing"):
        require(name, options[name], 0 <= options[name] <= 1, "from 0 to 1")
    for name in ("mixup", "cutmix"):
        require(name, options[name], options[name] == 0 or 0.01 <= options[name] <= 100, "0, or from 0.01 to 100")
