"""The Lightning data module: a source, the split into training and validation, loaders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_lit.checkpoint import plain_value
from cifar_lit.data import SourceName, Split, SplitName, expand_home, make_source
from cifar_lit.data.augment import Augmentation, Flip, resize, size_of_epoch, to_float
from cifar_lit.data.decoding import Resize
from cifar_lit.data.duplicates import Duplicates, check_copies
from cifar_lit.data.known import KnownImages
from cifar_lit.data.loader import BatchLoader
from cifar_lit.data.options import check_options, default_val_size, scaled, whole_number
from cifar_lit.data.split import hash_images, hold_out
from cifar_lit.data.stored import resized
from cifar_lit.errors import require

CACHE_DIR = "~/.cache/cifar_lit"
EVALUATION_BATCH_SIZES = {"cpu": 100, "other": 500}
"""Batch size of validation and test at 32 pixels, which changes no result. Larger ones need memory for no speed."""


class CIFAR10DataModule(KnownImages):
    """CIFAR-10, or other square colour images of a few classes.

    A batch is a tuple of images ``(N, 3, size, size)``, uint8 in [0, 255], channels last in memory, and labels
    ``(N,)``, int64. With ``image_sizes``, training images are float32 in [0, 1], of another size; with ``mixup`` or
    ``cutmix``, training labels are float32 ``(N, num_classes)``. Images are not normalised: that is part of the model.
    The test images are scored only by ``trainer.test``; before, ``duplicates`` drop reads them for copies.

    Which images are held out depends on the pixels of each image, and not on its name or position. A checkpoint holds
    fingerprints of the training and validation images: to resume with other ones is a ``UserError``, to validate on
    other ones a warning. An argument outside its range, or a ``root`` that cannot be a dataset, is a ``UserError``.

    Args:
        source: Where the images come from. cifar10, cifar100: the official archive, downloaded to root if missing.
            images: a folder or archive of your own, of any size: CLASS/*, or train/CLASS/*, test/CLASS/* and optionally
            val/CLASS/*. Without test, a fifth is held out for it, by a hash of each image: images that are added or
            renamed move no other. synthetic: generated images of ten shapes and patterns, without any files.
            torchvision: one of its datasets of classified images, chosen by dataset, and downloaded to root if missing.
        root: For cifar10 and cifar100, the folder of the archive. For images, the folder, .tar, .tar.gz or .zip file.
        mirror: For cifar10 and cifar100, a download URL to try before the known ones.
        batch_size: Number of images in a training batch, per device. A last batch of one image is left out.
        val_size: Number of training images to hold out for validation (stratified by class), or a fraction of them
            below 1; 0 for none. By default 5,000; for images and torchvision a tenth of each class, at least one. With
            a fraction, images that are added move no other, and the number is approximate. Ignored with a val split.
        split_seed: Random seed of the split into training and validation, independent of seed.
        seed: Random seed of the order and the augmentation of the training images; on the command line, the value of
            --seed_everything.
        cache_dir: For images and torchvision, the folder where decoded images are cached.
        crop_padding: Random crop: pixels of reflection padding on each side of a training image, from which a random
            crop of the old size is taken; 0 for none.
        flip: Horizontal flip of training images: none; random, with probability 0.5; or alternating, a random half of
            the images in one epoch and the other half in the next.
        cutout: Side in pixels of a square of the mean colour at a random position in each training image; 0 for none.
        image_sizes: Height and width of the training images in each epoch, for progressive resizing, for example
            [16, 24, 32]; later epochs use the last size, and with a lower max_epochs some sizes are skipped, so that
            the last epoch has the last one. Empty for image_size throughout.
        image_size: Height and width of the images in pixels, from 8 to 256. All that use the model prepare images in
            this size. Which images are held out does not depend on it.
        resize: How images of your own become square: squash changes their aspect ratio; crop scales the short side and
            cuts out the middle; pad scales the long side and adds black bars.
        dataset: For torchvision, the name of its class, as MNIST or SVHN, with a variant where it has some, as
            EMNIST/letters. A wrong name lists them all. Some need another package, which the error names.
        duplicates: keep, or drop training images that have an exact or near copy among the validation and test images,
            which drop reads for that, or an exact copy in another class. Of your own images such copies are counted.
        mixup: MixUp of training images and labels, with shares from Beta(mixup, mixup); 0 for none.
        cutmix: CutMix, with areas from Beta(cutmix, cutmix); 0 for none. With both, each image has one at random.
        brightness: Multiply the brightness of each training image by a factor within 1 +/- brightness; 0 for none.
        contrast: The same for the contrast.
        saturation: The same for the saturation.
        erasing: Probability of filling a random box of a training image with the mean colour; 0 for none.
        trivial_augment: Do one random operation of random strength to each training image.

    Attributes:
        train: The training split, after ``setup("fit")``; its images are uint8 ``(N, size, size, 3)``.
        val: The validation split, after ``setup("fit")``; None without validation.
        test: The test split, after ``setup("test")`` or ``setup("predict")``.
        fingerprints: The number and a hash of the images of each split that is loaded.
        copies: What was said of the images of each split that have copies; None if nobody looked for them.
    """

    train: Split | None = None
    val: Split | None = None
    test: Split | None = None

    def __init__(
        self,
        *,
        source: SourceName = "cifar10",
        root: str = "data",
        mirror: str | None = None,
        batch_size: int = 64,
        val_size: int | float | None = None,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str = CACHE_DIR,
        crop_padding: int = 0,
        flip: Flip = "none",
        cutout: int = 0,
        image_sizes: Sequence[int] = (),
        image_size: int = 32,
        resize: Resize = "squash",
        dataset: str | None = None,
        duplicates: Duplicates = "keep",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        erasing: float = 0.0,
        trivial_augment: bool = False,
    ) -> None:
        options = {name: plain_value(value) for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        options["val_size"] = default_val_size(source) if val_size is None else whole_number(options["val_size"])
        check_options(options | {"val_size": options["val_size"] or 0})
        folder, cache = expand_home("root", root), expand_home("cache_dir", cache_dir)
        is_default = cache == expand_home("cache_dir", CACHE_DIR)  # another for each user, though a file expands its ~
        saved = {name: os.path.abspath(path) for name, path in (("root", folder), ("cache_dir", cache))}  # noqa: PTH100
        self.save_hyperparameters(options | saved | ({"cache_dir": CACHE_DIR} if is_default else {}))
        self.augmentation = Augmentation(**{name: options[name] for name in vars(Augmentation())})
        self.copies: dict[str, str | None] = {}
        given = {name: options[name] for name in ("mirror", "image_size", "resize", "dataset")}
        self.source = make_source(source, root=Path(folder), cache_dir=Path(cache), **given)

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; known before ``setup``."""
        return self.source.has_val or self.hparams["val_size"] != 0

    def prepare_data(self) -> None:
        """Download and extract what is missing, in one process per machine."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Load the images of a stage, once: ``test`` and ``predict`` the test split, others training and validation."""
        if stage in ("test", "predict"):
            if self.test is None:
                test = self._load("test")
                self.test = self._take_fingerprint("test", test, hash_images(test.images, seed=0))
                self._compare("test")
                if self.train is not None:
                    others = {"train": self.train, "val": self.val}
                    _, self.copies["test"] = check_copies("test", test, others, self.source, self.hparams)
            return
        if self.train is None:
            self._load_train_and_val()
        if stage == "validate":
            self._compare("val")

    def take_test(self, other: "CIFAR10DataModule") -> None:
        """Take the test images that another one of the same data has loaded, and compare them as if loaded here."""
        self.test, self.fingerprints["test"] = other.test, other.fingerprints["test"]
        self._compare("test")

    def _load_train_and_val(self) -> None:
        split_seed, val_size = self.hparams["split_seed"], self.hparams["val_size"]
        train, val = self._load("train"), self._load("val") if self.source.has_val else None
        hashes = hash_images(train.images, seed=split_seed)
        if val is not None:
            val = self._take_fingerprint("val", val, hash_images(val.images, seed=split_seed))
        elif val_size != 0:
            is_val, self._limits = hold_out(hashes, train.labels, val_size, self.classes, known=self._limits)
            train, val = train.part(~is_val), train.part(is_val)
            val = self._take_fingerprint("val", val, hashes[is_val])
            hashes = hashes[~is_val]
        is_used, self.copies["train"] = check_copies("train", train, {"val": val}, self.source, self.hparams)
        if val is not None:
            _, self.copies["val"] = check_copies("val", val, {}, self.source, self.hparams)
        train, hashes = train.part(is_used), hashes[is_used]
        self._take_fingerprint("train", train, hashes)
        batch_size, num_train = self.hparams["batch_size"], len(train.labels)
        given = f"{batch_size}, and there are {num_train} training images"
        require("batch_size", given, batch_size <= num_train, "smaller")
        self.train, self.val = train, val

    def _load(self, name: SplitName) -> Split:
        images, labels = self.source.load(name)
        folder = Path(expand_home("cache_dir", self.hparams["cache_dir"]))
        return Split(resized(images, self.hparams["image_size"], folder), labels)

    def sample_images(self, num_images: int = 5000) -> Tensor:
        """Return at most ``num_images`` training images, always the same: ``(n, 3, size, size)``, float32 in [0, 1].

        Of images above 32 pixels they are fewer, with the same number of pixels.
        """
        assert self.train is not None
        num_train = len(self.train.labels)
        num_images = min(num_images, scaled(num_images, self.hparams["image_size"]))
        spread = torch.linspace(0, num_train - 1, min(num_images, num_train)).long()  # they may be sorted by class
        return to_float(self.train.images[spread].permute(0, 3, 1, 2))

    def train_dataloader(self) -> BatchLoader:
        assert self.train is not None
        # With overfit_batches, each epoch must have the same batches.
        order = {"shuffle": not getattr(self.trainer, "overfit_batches", 0) > 0}
        return self._loader(self.train, self.hparams["batch_size"], augmentation=self.augmentation, **order)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader(self.val) if self.val else []

    def test_dataloader(self) -> BatchLoader:
        assert self.test is not None
        return self._loader(self.test)

    def predict_dataloader(self) -> BatchLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Resize the training images to this epoch's entry of ``image_sizes``, on the device."""
        sizes = self.hparams["image_sizes"]
        if not isinstance(batch, tuple | list):  # the example input of a summary or graph
            return batch
        if self.trainer and self.trainer.predicting:
            return batch[0]  # Lightning's predict_step is the forward of the module
        if not (sizes and self.trainer and self.trainer.training):
            return batch
        images, labels = batch
        size = size_of_epoch(sizes, self.trainer.current_epoch, self.trainer.max_epochs)
        return resize(to_float(images), size), labels

    def _loader(self, split: Split, batch_size: int | None = None, **options: Any) -> BatchLoader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        kind = "cpu" if device.type == "cpu" else "other"
        return BatchLoader(
            *split,
            batch_size=batch_size or scaled(EVALUATION_BATCH_SIZES[kind], self.hparams["image_size"]),
            device=device,
            seed=self.hparams["seed"],
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            num_classes=len(self.classes),
            **options,
        )
