"""The tutorial's network: three 5x5 convolutions, each with max-pooling, then two linear layers."""

from collections import OrderedDict

from torch import Tensor, nn

from cifar_lit.networks.base import Network


class TutorialCNN(Network):
    """The convolutional network of the tutorial, whose only nonlinearity is max-pooling.

    With ten classes it has 145,578 parameters. The initialisation is PyTorch's default.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images, at least 8.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        side = image_size // 2 // 2 // 2  # after three poolings
        # Named layers, for the graph and the summary.
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=5, padding=2),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 32, kernel_size=5, padding=2),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, kernel_size=5, padding=2),
                pool3=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * side * side, 64),
                linear2=nn.Linear(64, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 3, image_size, image_size)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.layers(images)
        return logits
