"""What torchmetrics lacks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """The mean over images of a loss that is given as the mean over batches.

    The library's MeanMetric either looks for NaN, which synchronises with the device in each step, or, told not to,
    gives each batch the same weight (torchmetrics 1.9).
    """

    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, num_images: int) -> None:
        """Count one batch.

        Args:
            loss: The mean over the batch, a scalar.
            num_images: Images in the batch.
        """
        self.total += loss * num_images
        self.num_images += num_images

    def compute(self) -> Tensor:
        """Give the mean.

        Returns:
            A scalar.
        """
        return self.total / self.num_images
