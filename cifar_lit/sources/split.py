"""What every source gives: checked images and labels in memory."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

SplitName = Literal["train", "val", "test"]


class Split(NamedTuple):
    """One part of a dataset, in memory."""

    images: Tensor
    """``(N, 3, 32, 32)``, uint8, RGB; best with the channels last in memory, as batches are cut from them."""
    labels: Tensor
    """``(N,)``, int64, indices into the source's ``classes``."""


class Source(Protocol):
    """Where images come from."""

    title: str
    """What the output calls the data."""
    classes: list[str]
    """The names of the classes, in the order of the labels."""
    has_val: bool
    """Whether the source brings a validation split of its own."""

    def prepare(self) -> None:
        """Do what only one process of a machine may do before ``load``: download and extract."""

    def load(self, split: SplitName) -> Split:
        """Give one part of the data.

        Args:
            split: Which part.

        Returns:
            Its images and labels.
        """
