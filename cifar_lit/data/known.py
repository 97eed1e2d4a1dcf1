"""Which images a training was made with: fingerprints in its checkpoint, compared with those of the data."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cifar_lit.data import Source
from cifar_lit.data.split import Split, check_state, fingerprint, mix_classes
from cifar_lit.errors import UserError


class KnownImages(LightningDataModule):
    """What a ``CIFAR10DataModule`` knows of its images, and of those of the training that made a checkpoint.

    Attributes:
        source: Where the images come from.
        train: The training split, once it is loaded.
        fingerprints: The number and a hash of the images of each split that is loaded.
    """

    source: Source
    train: Split | None

    def __init__(self) -> None:
        super().__init__()
        self.fingerprints: dict[str, str] = {}
        self._limits: list[int] | None = None  # of the hashes of each class that are held out
        self._trained: Mapping[str, Any] | None = None  # what a checkpoint says of the images of its training

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels; known before ``setup``."""
        return self.source.classes

    def _take_fingerprint(self, name: str, split: Split, hashes: Tensor) -> Split:
        # The order and augmentation of training images go by their positions.
        self.fingerprints[name] = fingerprint(hashes, split.labels, self.classes, ordered=name == "train")
        return mix_classes(split, hashes)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the fingerprints of the training and validation images, and their limits."""
        state: dict[str, Any] = {name: self.fingerprints.get(name, "") for name in ("train", "val")}
        return {**state, "limits": self._limits} if state["train"] else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Compare the images with those of the training that made a checkpoint, as soon as they are loaded.

        The images of a training that resumes must be the same; else other validation images are a warning. Images are
        then held out as in that training. An empty state is that of a checkpoint from before there were fingerprints.
        Other test images than those of ``test``, where it is in the state, are a warning, too.
        """
        check_state(state_dict, self.classes)
        self._trained = {"test": (self._trained or {}).get("test", ""), **state_dict}
        if self.trainer and self.trainer.state.fn == TrainerFn.FITTING:
            for split in ("train", "val"):
                self._compare(split, is_resumed=True)
        elif self.train is None:
            self._limits = state_dict.get("limits")
        else:
            self._compare("val")

    def _compare(self, split: str, *, is_resumed: bool = False) -> None:
        """Compare images with those of the training that made the checkpoint, if there is one."""
        trained, root = self._trained or {}, self.hparams["root"]
        now, then = self.fingerprints.get(split, ""), trained.get(split, "")
        if self._trained is None or now == then or (split == "test" and not then):
            return
        name = {"train": "training", "val": "validation"}.get(split, split)
        run = f" {trained['run']}" if "run" in trained else ""
        images = f"the {name} images are not those of the run{run} (now {now or 'none'}; then {then or 'not known'})"
        if is_resumed:
            raise UserError(f"`root` {root}: {images}: give those, in the same order, or start a new run")
        if split == "val":
            is_held_out = self._limits is not None and self._limits == trained.get("limits")
            what = "they are held out as in the training" if is_held_out else "some of them may have been trained on"
            images += f": {what}"
        rank_zero_warn(f"{root}: {images}")
