"""What the benchmark measures: the tutorial's loop, the practical limit, ours, and the time around a training."""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cifar_lit.benchmarks.processes import run, run_on_terminal
from cifar_lit.data.augment import Augmentation, to_float
from cifar_lit.data.loader import BatchLoader
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.machine import set_up
from cifar_lit.main import main
from cifar_lit.networks import Network, TutorialCNN
from cifar_lit.run import Run

FIT = [sys.executable, "-m", "cifar_lit", "fit"]
IMPORTS = [sys.executable, "-c", "import torch, lightning.pytorch.cli"]
BATCH_SIZE = 64  # the tutorial's
LOADER_BATCH_SIZE = 500
STEP_BATCH_SIZES = (64, 512, 2000)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass(frozen=True)
class Data:
    """The training images to measure with: ``--data.source``, ``--data.root``, and the largest number of images."""

    source: str
    root: str
    num_images: int

    def load(self) -> tuple[Tensor, Tensor]:
        """Return images ``(N, 32, 32, 3)``, uint8, and labels ``(N,)``."""
        data = CIFAR10DataModule(source=self.source, root=self.root, batch_size=1)  # type: ignore[arg-type]
        data.prepare_data()
        data.setup("fit")
        assert data.train is not None
        return data.train.images[: self.num_images], data.train.labels[: self.num_images]

    @property
    def options(self) -> list[str]:
        """The same as options of ``fit``."""
        return ["--data.source", self.source, "--data.root", self.root]


class PILDataset(Dataset[tuple[Any, int]]):
    """Images as torchvision's CIFAR10 returns them: one PIL image at a time, through a transform."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images: NDArray[np.uint8] = images.numpy()
        self.labels: list[int] = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class MeanColour(Network):
    """A linear layer on the mean colour: nearly nothing, to measure what is around a network.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.linear(images[:, :, ::8, ::8].mean((2, 3)))
        return logits


class FirstStep(Callback):
    """Prints the time at the end of the first step of a fit, and ends the process."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Print the time and leave."""
        print(f"first step at {time.time()}", flush=True)
        os._exit(0)


def tutorial_loop(data: Data, num_workers: int) -> dict[str, float]:
    """Train for an epoch as the tutorial does: PIL images, ToTensor, a DataLoader, the plain loop."""
    from torchvision.transforms import ToTensor

    images, labels = data.load()
    dataset = PILDataset(images, labels, ToTensor())
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
    net = TutorialCNN(int(labels.max()) + 1).layers.to(DEVICE)  # plain layers of torch, in its default layout
    return {"images_per_second": len(labels) / _seconds(lambda: _train(net, loader))}


def limit_loop(data: Data) -> dict[str, float]:
    """Train for an epoch on float batches that are ready on the device in the fastest layout, and do nothing else."""
    set_up(DEVICE, "32-true")
    images, labels = data.load()
    loader = BatchLoader(images, labels, batch_size=BATCH_SIZE, shuffle=True, device=DEVICE)
    batches = [(to_float(batch), targets) for batch, targets in loader]
    net = TutorialCNN(int(labels.max()) + 1).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {"images_per_second": len(labels) / _seconds(lambda: _train(net, batches))}


def our_fit(data: Data) -> dict[str, float]:
    """Train for an epoch as ``cifar-lit fit`` does on a terminal, with everything around the network."""
    with tempfile.TemporaryDirectory() as folder:
        num_batches = -(-data.num_images // BATCH_SIZE)
        options = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(num_batches)]
        peak = run_on_terminal([*FIT, *data.options, *options, "--trainer.default_root_dir", folder])
        return {"images_per_second": _fit_speed(folder)[0], "peak_gb": peak}


def torchvision_loader(data: Data) -> dict[str, float]:
    """Make an epoch of float batches with torchvision and a DataLoader: padded by reflection, cropped, mirrored."""
    from torchvision import transforms

    images, labels = data.load()
    crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    loader = DataLoader(PILDataset(images, labels, transform), batch_size=LOADER_BATCH_SIZE, shuffle=True)

    def epoch() -> None:
        for batch, _ in loader:
            batch.to(DEVICE)

    epoch()
    return {"images_per_second": len(labels) / _seconds(epoch)}


def our_loader(data: Data) -> dict[str, float]:
    """Make an epoch of the same batches with our loader."""
    set_up(DEVICE, "32-true")
    images, labels = data.load()
    augmentation = Augmentation(crop_padding=4, flip="random")
    options: dict[str, Any] = {"batch_size": LOADER_BATCH_SIZE, "shuffle": True, "device": DEVICE}
    loader = BatchLoader(images, labels, augmentation=augmentation, **options)

    def epoch() -> None:
        for batch, _ in loader:
            to_float(batch)

    epoch()  # the first one gets its memory from the kernel
    return {"images_per_second": len(labels) / _seconds(epoch)}


def step_overhead(data: Data, batch_size: int) -> dict[str, float]:
    """Compare a fit, with all its callbacks, with a bare loop over the same loader, for a network of nearly nothing.

    With the tutorial's network the difference would drown in the noise of the convolutions.
    """
    images, labels = data.load()
    set_up(DEVICE, "32-true")
    loader = BatchLoader(images, labels, batch_size=batch_size, shuffle=True, device=DEVICE)
    num_epochs = -(-300 // len(loader))
    net = MeanColour(int(labels.max()) + 1).to(DEVICE)

    def epochs() -> None:
        for epoch in range(num_epochs):
            loader.set_epoch(epoch)
            _train(net, ((to_float(images), labels) for images, labels in loader))

    epochs()
    bare = _seconds(epochs) / (num_epochs * len(labels))
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", str(num_epochs), "--data.batch_size", str(batch_size)]
        options += ["--trainer.limit_train_batches", str(len(loader)), "--trainer.default_root_dir", folder]
        if main(["fit", *data.options, "--model.net", f"{__name__}.MeanColour", *options]):
            raise UserError("the fit failed", exit_code=1)
        speed, num_train = _fit_speed(folder)
    images_per_step = min(batch_size * len(loader), num_train) / len(loader)
    return {"added_ms": 1000 * images_per_step * (1 / speed - bare)}


def startup(data: Data) -> dict[str, float]:
    """Time the bare imports, ``--help``, and a fit from its command to the end of its first step."""
    imports = _seconds(lambda: run(IMPORTS))
    help_ = _seconds(lambda: run([*FIT, "--help"]))
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", folder]
        options += ["--trainer.callbacks+", f"{__name__}.FirstStep"]
        started = time.time()
        output = run([*FIT, *data.options, *options])
        first_step = float(output.partition("first step at ")[2].split()[0]) - started
    return {"imports_seconds": imports, "help_seconds": help_, "first_step_seconds": first_step}


MEASURES: dict[str, Callable[[Data], dict[str, float]]] = {
    "a, 0 workers": lambda data: tutorial_loop(data, 0),
    "a, 2 workers": lambda data: tutorial_loop(data, 2),
    "b": limit_loop,
    "c": our_fit,
    "d, torchvision": torchvision_loader,
    "d, ours": our_loader,
    **{f"e, batch {size}": lambda data, size=size: step_overhead(data, size) for size in STEP_BATCH_SIZES},  # type: ignore[misc]
    "f": startup,
}
"""The measures, by names that start with their letter; each returns its values by name."""


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _train(net: nn.Module, batches: Any) -> None:
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for images, labels in batches:
        loss = loss_function(net(images.to(DEVICE)), labels.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _fit_speed(folder: str) -> tuple[float, int]:
    """Return the images per second and the number of training images of the run below a folder."""
    (path,) = Path(folder).glob("lightning_logs/version_*")
    results = Run(path).results
    assert results is not None
    assert results.images_per_second is not None
    return results.images_per_second, results.num_train
