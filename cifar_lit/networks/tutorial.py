"""The tutorial's network: three 5x5 convolutions, each with a max-pool, then two linear layers."""

from collections import OrderedDict

from torch import Tensor, nn

from cifar_lit.networks.base import Network


class TutorialCNN(Network):
    """The convolutional network of the tutorial, without a nonlinearity other than its max-pools.

    With ten classes it has 145,578 parameters. The initialisation is PyTorch's default.

    Args:
        num_classes: How many logits come out.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        # A Sequential with names: the graph and the summary show them, and forward is one line.
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, kernel_size=5, padding=2),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 32, kernel_size=5, padding=2),
                pool2=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, kernel_size=5, padding=2),
                pool3=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * 4 * 4, 64),
                linear2=nn.Linear(64, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: ``(N, 3, 32, 32)``, float32.

        Returns:
            ``(N, num_classes)``, float32.
        """
        logits: Tensor = self.layers(images)
        return logits
