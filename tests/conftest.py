"""What several tests share: tiny pictures, the command line in process, real images where they are at hand."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lit.cli import main

TINY_CLASSES = ("bright", "dark", "green")
FEW_EPOCHS = ["--trainer.max_epochs", "2", "--data.batch_size", "8", "--no_report"]  # which takes half a second
RUN = Path("lightning_logs/version_0")


def tiny_picture(class_name: str, number: int) -> Image.Image:
    """Draw a picture of an odd size that any network learns: each class has a colour of its own."""
    rng = np.random.default_rng(number)
    height, width = 20 + number % 7, 32 + 5 * (number % 3)
    colour = {"bright": (230, 220, 210), "dark": (30, 20, 40), "green": (20, 200, 40)}[class_name]
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, suffix: str) -> bytes:
    """Encode a picture as a file of the given ending."""
    buffer = io.BytesIO()
    image.save(buffer, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}[suffix])
    return buffer.getvalue()


def tiny_files(num_train: int = 20, num_test: int = 8) -> dict[str, bytes]:
    """Make a dataset of three classes: the content of each file by its name."""
    suffixes = (".jpg", ".png", ".webp", ".bmp")
    return {
        f"{split}/{name}/{number}{suffixes[number % 4]}": encode(tiny_picture(name, number), suffixes[number % 4])
        for split, numbers in (("train", range(num_train)), ("test", range(100, 100 + num_test)))
        for name in TINY_CLASSES
        for number in numbers
    }


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test's cache and logs in a folder of its own."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Give a folder of 60 training and 24 test pictures of three classes, in odd sizes and four formats."""
    return write_files(tmp_path / "tiny", tiny_files())


@pytest.fixture
def tiny_args(tiny_root: Path) -> list[str]:
    """Give the options that train on the tiny pictures."""
    return ["--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0.2"]


@pytest.fixture
def run(tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Train on the tiny pictures; gives what was printed."""
    main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "3"])
    return capsys.readouterr().out


@pytest.fixture
def reported_run(tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Train the same, with a report; gives what was printed."""
    main(["fit", *tiny_args, *FEW_EPOCHS, "--report", "--seed_everything", "3"])
    return capsys.readouterr().out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], tuple[int, str]]:
    """Give a function that runs a command line that must fail, and returns its exit code and its one line."""

    def run(args: list[str]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(args)
        _, marker, message = capsys.readouterr().err.partition("error: ")
        assert message.count("\n") == 1, message
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, marker + message.strip()

    return run


@pytest.fixture
def real_images() -> Path:
    """Give the place of real images, or skip."""
    path = os.environ.get("CIFAR_LIT_IMAGES")
    if not path:
        pytest.skip("CIFAR_LIT_IMAGES does not name a folder or archive of real images")
    return Path(path)


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a place where all tests keep the decoded real images."""
    return tmp_path_factory.mktemp("real")
