"""The widths and depth of airbench96, for a GPU: four times the multiplications of the fast network."""

from collections.abc import Sequence

from cifar_lit.networks.fast import FastCNN


class StrongCNN(FastCNN):
    """``FastCNN`` with three convolutions in each of its wider stages, after airbench96.

    The source (https://github.com/KellerJordan/cifar10-airbench) reaches 96 % in 40 epochs with it; there, too, what
    the last convolution of a stage gives is added to what the first one gave.

    Args:
        num_classes: How many logits come out.
        widths: Channels of each stage.
        num_convs: Convolutions in each stage.
    """

    def __init__(self, num_classes: int = 10, *, widths: Sequence[int] = (128, 384, 512), num_convs: int = 3) -> None:
        super().__init__(num_classes, widths=widths, num_convs=num_convs)
