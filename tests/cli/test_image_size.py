"""Images of another size than 32 pixels: from the training to each command that reads the run."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image

from cifar_lit.cli.network import check_network
from cifar_lit.commands.demo import classify, enlarge
from cifar_lit.data.decoding import read_image
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import ConvNet, FastCNN, TutorialCNN
from cifar_lit.run import Run
from tests.helpers.images import tiny_files, write_files
from tests.helpers.networks import Sized
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused
from tests.helpers.trainers import quiet_trainer

CLASSES = ["a", "b", "c"]


def test_a_run_at_48_pixels_is_read_by_every_command(
    tiny_args: list[str], tiny_root: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--data.image_size", "48", "--data.resize", "pad"]) == 0
    model = Run(RUN).model()
    assert (model.image_size, model.hparams["resize"]) == (48, "pad")
    picture = next((tiny_root / "test").rglob("*.png"))
    pixels = read_image(picture, 48, "pad")
    probabilities = model.predict(picture)
    for image in (pixels, Image.open(picture), np.asarray(Image.open(picture)), torch.tensor(pixels).permute(2, 0, 1)):
        assert torch.equal(model.predict(image), probabilities)
    with pytest.raises(UserError, match=r"must be \(N, 3, 48, 48\)"):
        model.predict(torch.zeros(1, 3, 32, 32))

    seen, by_class = classify(model, picture)
    assert np.array_equal(seen, pixels)
    assert list(by_class.values()) == probabilities[0].tolist()
    assert enlarge(seen).shape == (240, 240, 3)
    capsys.readouterr()
    assert main(["predict", str(RUN), str(picture), "--format", "csv"]) == 0
    assert f",{float(probabilities.max()):.6f}," in capsys.readouterr().out
    assert main(["explain", str(RUN)]) == 0
    assert capsys.readouterr().out.startswith("image 3 x 48 x 48\n")
    assert main(["test", str(RUN)]) == 0

    assert main(["export", str(RUN), "--to", "safetensors"]) == 0
    card = (RUN / "export/README.md").read_text()
    assert "RGB images of 48x48 pixels, `(N, 3, 48, 48)`" in card
    assert torch.equal(Run(RUN / "export").model().predict(picture), probabilities)

    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", "--data.image_size", "40"])
    assert (code, "image_size 48 (given: 40)" in line) == (2, True)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0


def test_an_older_run_has_32_pixels(run: str, tiny_root: Path, refused: Refused) -> None:
    for path in (RUN / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        for part in ("hyper_parameters", "datamodule_hyper_parameters"):
            for name in ("image_size", "resize"):
                del checkpoint[part][name]
        torch.save(checkpoint, path)
    assert Run(RUN).model().image_size == Run(RUN).datamodule().hparams["image_size"] == 32
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", "--data.image_size", "48"])
    assert (code, "image_size 32 (given: 48)" in line) == (2, True)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0


def test_the_same_images_are_held_out_at_each_size(tmp_path: Path) -> None:
    files = {name.removeprefix("train/"): content for name, content in tiny_files(20, 0).items()}
    root = write_files(tmp_path / "all", files)  # without a test folder
    found = []
    sizes: tuple[dict[str, Any], ...] = ({}, {"image_size": 40}, {"image_size": 40, "resize": "crop"})
    for options in sizes:
        data = CIFAR10DataModule(source="images", root=str(root), batch_size=8, **options)
        data.setup("fit")
        data.setup("test")
        assert data.train is not None
        assert data.test is not None
        assert data.train.images.shape[1:] == (data.hparams["image_size"], data.hparams["image_size"], 3)
        found.append((data.fingerprints, data.train.labels.tolist(), data.test.labels.tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("net", "size", "takes"),
    [
        (functools.partial(FastCNN, widths=(8, 8, 8, 8)), 8, "it takes 16, 24, 32, 48, 64, 96, 128, 192, 256"),
        (functools.partial(ConvNet, widths=(8,) * 5), 16, "it takes 32, 48, 64, 96, 128, 192, 256"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused_with_those_that_it_takes(
    net: functools.partial[torch.nn.Module], size: int, takes: str
) -> None:
    with pytest.raises(UserError, match=f"`image_size` is {size}, and {takes}"):
        check_network(ImageClassifier(classes=CLASSES, net=net, image_size=size), [])


@pytest.mark.parametrize("size", [8, 31, 40])
def test_networks_compute_their_features_from_the_size(size: int) -> None:
    images = torch.zeros(2, 3, size, size)
    for net in (TutorialCNN, ConvNet, Sized):
        model = ImageClassifier(classes=CLASSES, net=net, image_size=size)
        assert model(images).shape == (2, 3)
        assert model.hparams["net"]["init_args"] == {}


def test_a_data_module_of_another_size_than_the_model_is_refused(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), image_size=40, batch_size=8)
    with pytest.raises(UserError, match="`image_size` is 32: must be 40, that of the data"):
        quiet_trainer(fast_dev_run=1).fit(ImageClassifier(classes=data.classes), datamodule=data)


def test_a_data_module_of_the_users_own_may_call_anything_image_size() -> None:
    class Own(LightningDataModule):
        def __init__(self, image_size: tuple[int, int]) -> None:
            super().__init__()
            self.save_hyperparameters()

    model = ImageClassifier(classes=CLASSES)
    model._trainer = SimpleNamespace(datamodule=Own((48, 48)))  # type: ignore[assignment]  # before its own crop
    model.check_network()


def test_sizes_of_the_epochs_end_with_the_image_size() -> None:
    with pytest.raises(UserError, match=r"`image_sizes` is \[16, 24, 32\]: must be sizes .* as \[32, 48, 64\], or"):
        CIFAR10DataModule(source="synthetic", image_size=64, image_sizes=[16, 24, 32])
    assert CIFAR10DataModule(source="synthetic", image_sizes=[16, 24]).hparams["image_sizes"] == [16, 24]


@pytest.mark.parametrize(("name", "value"), [("image_size", "64"), ("resize", "pad")])
def test_what_model_and_data_share_is_given_once(name: str, value: str, refused: Refused) -> None:
    code, line = refused(["fit", f"--model.{name}", value])
    assert (code, f"error: --data.{name} is for the model, too: give that alone" in line) == (2, True)
