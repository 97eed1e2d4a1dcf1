"""What the benchmark measures: the tutorial's loop, the practical limit, ours, and what stands around them."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
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

from cifar_lit.augment import Augmentation
from cifar_lit.cli import main as run_cli
from cifar_lit.datamodule import CIFAR10DataModule, to_float
from cifar_lit.loader import BatchLoader
from cifar_lit.machine import set_up
from cifar_lit.networks import Network, TutorialCNN

FIT = [sys.executable, "-c", "from cifar_lit.cli import main; main()", "fit"]
IMPORTS = [sys.executable, "-c", "import torch, lightning.pytorch.cli"]
BATCH_SIZE = 64  # the tutorial's
LOADER_BATCH_SIZE = 500
STEP_BATCH_SIZES = (64, 512, 2000)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass(frozen=True)
class Data:
    """The training images that are measured with.

    Attributes:
        source: As for ``--data.source``.
        root: As for ``--data.root``.
        num_images: How many at most.
    """

    source: str
    root: str
    num_images: int

    def load(self) -> tuple[Tensor, Tensor]:
        """Give the images ``(N, 3, 32, 32)``, uint8, and their labels ``(N,)``."""
        data = CIFAR10DataModule(source=self.source, root=self.root)  # type: ignore[arg-type]
        data.prepare_data()
        data.setup("fit")
        assert data.train is not None
        return data.train.images[: self.num_images], data.train.labels[: self.num_images]

    @property
    def options(self) -> list[str]:
        """The same as options of ``fit``."""
        return ["--data.source", self.source, "--data.root", self.root]


class Pictures(Dataset[tuple[Any, int]]):
    """Images as torchvision's data set gives them: a PIL image at a time, through a transform.

    Args:
        images: ``(N, 3, 32, 32)``, uint8.
        labels: ``(N,)``.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels: list[int] = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class MeanColour(Network):
    """Nearly nothing: a linear layer on the mean colour, to measure what stands around a network.

    Args:
        num_classes: How many logits come out.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.linear(images[:, :, ::8, ::8].mean((2, 3)))
        return logits


class FirstStep(Callback):
    """Says when the first step of a fit was made, and ends the process."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Print the time and leave."""
        print(f"first step at {time.time()}", flush=True)
        os._exit(0)


def tutorial_loop(data: Data, num_workers: int) -> dict[str, float]:
    """Train for an epoch as the tutorial does: PIL images, ToTensor, a DataLoader, the plain loop."""
    from torchvision.transforms import ToTensor

    images, labels = data.load()
    pictures = Pictures(images, labels, ToTensor())
    loader = DataLoader(pictures, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
    net = TutorialCNN(int(labels.max()) + 1).to(DEVICE)
    return {"images_per_second": len(labels) / _seconds(lambda: _train(net, loader))}


def limit_loop(data: Data) -> dict[str, float]:
    """Train for an epoch on float batches that lie ready on the device in the best layout, and do nothing else."""
    set_up(DEVICE, "32-true")
    images, labels = data.load()
    loader = BatchLoader(images, labels, batch_size=BATCH_SIZE, shuffle=True, device=DEVICE)
    batches = [(to_float(batch), targets) for batch, targets in loader]
    net = TutorialCNN(int(labels.max()) + 1).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {"images_per_second": len(labels) / _seconds(lambda: _train(net, batches))}


def our_fit(data: Data) -> dict[str, float]:
    """Train for an epoch as ``scripts/fit.py`` does on a terminal, with all that it has around the network."""
    with tempfile.TemporaryDirectory() as folder:
        num_batches = -(-data.num_images // BATCH_SIZE)
        options = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(num_batches)]
        peak = _run_on_terminal([*FIT, *data.options, *options, "--trainer.default_root_dir", folder])
        return {"images_per_second": _results(folder)["images_per_second"], "peak_gb": peak}


def torchvision_loader(data: Data) -> dict[str, float]:
    """Make an epoch of float batches, padded by reflection, cropped and mirrored by torchvision in a DataLoader."""
    from torchvision import transforms

    images, labels = data.load()
    crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    loader = DataLoader(Pictures(images, labels, transform), batch_size=LOADER_BATCH_SIZE, shuffle=True)

    def epoch() -> None:
        for batch, _ in loader:
            batch.to(DEVICE)

    epoch()
    return {"images_per_second": len(labels) / _seconds(epoch)}


def our_loader(data: Data) -> dict[str, float]:
    """Make an epoch of the same batches with our loader."""
    set_up(DEVICE, "32-true")
    images, labels = data.load()
    how = Augmentation(crop_padding=4, flip="random")
    options: dict[str, Any] = {"batch_size": LOADER_BATCH_SIZE, "shuffle": True, "device": DEVICE}
    loader = BatchLoader(images, labels, augmentation=how, **options)

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
    bare = _seconds(epochs) / (num_epochs * len(loader))
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", str(num_epochs), "--data.batch_size", str(batch_size)]
        options += ["--trainer.limit_train_batches", str(len(loader)), "--trainer.default_root_dir", folder]
        run_cli(["fit", *data.options, "--model.net", "cifar_lit.bench.measures.MeanColour", *options])
        results = _results(folder)
    images_per_step = min(batch_size * len(loader), results["num_train"]) / len(loader)
    ours = images_per_step / results["images_per_second"]
    return {"added_ms": 1000 * (ours - bare)}


def starting(data: Data) -> dict[str, float]:
    """Time the bare imports, ``--help``, and a fit from its command to the end of its first step."""
    imports = _seconds(lambda: run(IMPORTS))
    help_ = _seconds(lambda: run([*FIT, "--help"]))
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_steps", "1", "--trainer.default_root_dir", folder]
        options += ["--trainer.callbacks+", "cifar_lit.bench.measures.FirstStep"]
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
    "f": starting,
}
"""What can be measured, by the letter it begins with; each gives its figures by name."""


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


def _results(folder: str) -> dict[str, Any]:
    (path,) = Path(folder).glob("lightning_logs/*/results.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def run(command: list[str]) -> str:
    """Run a command.

    Args:
        command: The program and its arguments.

    Returns:
        What it printed.

    Raises:
        RuntimeError: If it fails, with its last lines.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _run_on_terminal(command: list[str]) -> float:
    """Run a command whose output is a terminal, so that it draws its bars; gives its peak of resident memory in GB."""
    master, terminal = os.openpty()
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output: list[bytes] = []

    def read() -> None:
        while True:
            try:
                output.append(os.read(master, 65536))
            except OSError:  # how Linux says that the other end was closed
                return
            if not output[-1]:
                return

    reader = threading.Thread(target=read)
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    os.close(master)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen was not asked
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {b''.join(output)[-2000:].decode(errors='replace')}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
