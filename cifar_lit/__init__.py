"""Image classifiers on CIFAR-10 with PyTorch Lightning: the tutorial's run, grown up."""

__version__ = "0.1.0"
