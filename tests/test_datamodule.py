"""The data module: what is read when, what is in a batch, which arguments are refused."""

import functools
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.data import Split
from cifar_lit.data.augment import Augmentation, resize
from cifar_lit.data.cifar10 import CLASSES
from cifar_lit.data.loader import BatchLoader
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.evaluation.score import describe
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN
from cifar_lit.run import Run
from tests.helpers.images import encode, tiny_files, tiny_image, write_files
from tests.helpers.networks import WideNet
from tests.helpers.trainers import quiet_trainer


def test_only_image_sizes_make_floats_of_a_batch(tiny_root: Path) -> None:
    batch = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
    for image_sizes in ([], [16]):
        data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0, image_sizes=image_sizes)
        assert data.on_after_batch_transfer(batch, 0) is batch  # in no training


def test_each_stage_reads_what_it_needs_and_fit_never_reads_test(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=16)
    read: list[str] = []
    load = data.source.load

    def recording(split: Any) -> Split:
        read.append(split)
        return load(split)

    data.source.load = recording  # type: ignore[method-assign]
    data.setup("fit")
    data.setup("validate")
    assert read == ["train"]
    assert [len(labels) for _, labels in data.train_dataloader()] == [16, 16, 16]
    val = data.val_dataloader()
    assert not isinstance(val, list)
    assert len(val.labels) == 12
    data.setup("test")
    data.setup("test")
    assert read == ["train", "test"]
    test = data.test_dataloader()
    assert len(test.labels) == 24
    assert not test.shuffle


def test_training_images_grow_with_the_epochs_and_others_keep_their_size(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=48, image_sizes=[16, 24])
    sizes: list[tuple[str, int, torch.dtype]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            sizes.append(("train", batch[0].shape[-1], batch[0].dtype))

        def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            sizes.append(("val", batch[0].shape[-1], batch[0].dtype))

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[Recorder()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(ImageClassifier(classes=data.classes, net=functools.partial(WideNet, width=3)), datamodule=data)
    val = ("val", 32, torch.uint8)
    assert sizes == [part for size in (16, 24, 24) for part in (("train", size, torch.float32), val)]


def test_a_sample_of_the_images_is_spread_over_the_classes(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0, batch_size=8)
    data.setup("fit")
    assert data.train is not None
    sample = data.sample_images(6)
    assert sample.shape == (6, 3, 32, 32)
    for i, position in ((0, 0), (1, 11), (5, 59)):
        assert torch.equal(sample[i], data.train.images[position].permute(2, 0, 1) / 255)
    assert len(data.sample_images(1000)) == 60


def test_augmentation_is_for_training_alone(tiny_root: Path) -> None:
    options: Any = {"crop_padding": 4, "flip": "random", "cutout": 8}
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=48, **options)
    data.setup("fit")
    data.setup("test")
    assert data.train_dataloader().augmentation == Augmentation(**options)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert isinstance(loader, BatchLoader)
        assert loader.augmentation == Augmentation()


def test_an_old_checkpoint_without_the_later_options_has_none_of_them(
    trained: tuple[ImageClassifier, CIFAR10DataModule],
) -> None:
    checkpoint = torch.load("trained.ckpt", weights_only=True)
    for name in ("mixup", "cutmix", "brightness", "contrast", "saturation", "erasing", "trivial_augment"):
        assert not checkpoint["datamodule_hyper_parameters"].pop(name)
    torch.save(checkpoint, "old.ckpt")
    assert Run("old.ckpt").datamodule().augmentation == Augmentation()


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "64-true", "bf16-true"])
def test_a_training_takes_mixed_labels_in_any_precision_and_size(tiny_root: Path, precision: str) -> None:
    options: Any = {"mixup": 0.3, "cutmix": 1.0, "erasing": 0.5, "contrast": 0.5, "flip": "random"}
    data = CIFAR10DataModule(
        source="images", root=str(tiny_root), val_size=12, batch_size=16, image_sizes=[16, 24], **options
    )
    seen: list[tuple[Tensor, Tensor]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            seen.append(batch)

    model = ImageClassifier(classes=data.classes, net=functools.partial(WideNet, width=3), label_smoothing=0.1)
    trainer = quiet_trainer(max_epochs=2, precision=precision, callbacks=[Recorder(), Throughput()])
    trainer.fit(model, datamodule=data)
    assert [len(labels) for _, labels in seen] == [16, 16, 16] * 2
    for images, labels in seen:
        assert images.is_floating_point()
        assert torch.allclose(labels.double().sum(1), torch.ones(16).double(), atol=1e-2)
        assert bool((labels.amax(1) < 0.99).any())
    assert [images.shape[-1] for images, _ in seen] == [16] * 3 + [24] * 3
    assert 0 <= trainer.callback_metrics["Accuracy/train"] <= 1
    assert trainer.callback_metrics["Loss/train"] > 0
    assert trainer.callback_metrics["Loss/val"] > 0


def test_without_validation_there_is_no_validation_loader(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=0, batch_size=8)
    data.setup("fit")
    assert not data.has_val
    assert data.val_dataloader() == []
    assert data.train is not None
    assert len(data.train.labels) == 60


def test_a_val_folder_takes_the_place_of_the_split(tmp_path: Path) -> None:
    files = tiny_files(6, 3)
    files |= {name.replace("test/", "val/"): content for name, content in files.items() if name.startswith("test")}
    data = CIFAR10DataModule(source="images", root=str(write_files(tmp_path / "own", files)), batch_size=4)
    data.setup("fit")
    assert data.has_val
    assert data.train is not None
    assert data.val is not None
    assert (len(data.train.labels), len(data.val.labels)) == (18, 9)


def test_by_default_5000_images_are_held_out_and_of_own_images_a_tenth(tiny_root: Path) -> None:
    assert CIFAR10DataModule(root="data").hparams["val_size"] == 5000
    assert CIFAR10DataModule(source="synthetic").hparams["val_size"] == 5000
    data = CIFAR10DataModule(source="images", root=str(tiny_root), batch_size=8)
    assert data.has_val
    data.setup("fit")
    assert data.train is not None
    assert data.val is not None
    assert torch.bincount(data.val.labels).tolist() == [2, 2, 2]
    assert len(data.train.labels) == 54


def pixels(split: Split | None) -> set[bytes]:
    assert split is not None
    return {image.numpy().tobytes() for image in split.images}


def test_folders_of_classes_are_split_so_that_other_images_names_and_seeds_move_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name.removeprefix("train/"): content for name, content in tiny_files(40, 0).items()}
    root = write_files(tmp_path / "own", files)

    def load(split_seed: int) -> CIFAR10DataModule:
        data = CIFAR10DataModule(source="images", root=str(root), batch_size=8, split_seed=split_seed)
        data.setup("fit")
        data.setup("test")
        assert data.train is not None
        assert data.val is not None
        assert data.test is not None
        return data

    first = load(0)
    train, val, test = pixels(first.train), pixels(first.val), pixels(first.test)
    num_test = len(test)
    assert 10 < num_test < 40
    assert len(train | val | test) == len(train) + len(val) + num_test == 120
    said = f"no test folder in {root}: {num_test} of 120 pictures, chosen by their content, are held out for the test"
    assert capsys.readouterr().err.count(said) == 1
    assert load(1).fingerprints["test"] == first.fingerprints["test"]
    for path in (root / "dark").glob("*.png"):
        path.rename(path.with_name(f"renamed {path.name}"))
    for i in range(20):
        (root / f"bright/more{i}.png").write_bytes(encode(tiny_image("bright", 500 + i), ".png"))
    now = load(0)
    assert pixels(now.test) >= test
    assert pixels(now.train) | pixels(now.val) >= train | val
    (root / "lone").mkdir()
    (root / "lone/1.png").write_bytes(encode(tiny_image("dark", 900), ".png"))
    with pytest.raises(UserError, match=r"`root` .*own: lone has one picture, or copies of one: add another"):
        load(0)


def add_images(root: Path, *, number: int = 6) -> None:
    """Add images to a class of the training images."""
    for i in range(number):
        (root / f"train/dark/more{i}.png").write_bytes(encode(tiny_image("dark", 500 + i), ".png"))


@pytest.fixture
def trained(tiny_root: Path) -> tuple[ImageClassifier, CIFAR10DataModule]:
    """Train an epoch on the tiny images, of which 12 are held out, and save ``trained.ckpt``."""
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=16)
    model = ImageClassifier(classes=data.classes)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("trained.ckpt")
    return model, data


def test_a_training_resumes_with_the_same_images_alone(trained: tuple[ImageClassifier, CIFAR10DataModule]) -> None:
    model, data = trained
    root = Path(data.hparams["root"])
    before = {path.name for path in Path().iterdir()}

    def resume() -> None:
        again = CIFAR10DataModule(**data.hparams)
        quiet_trainer(max_epochs=2, limit_train_batches=1).fit(model, datamodule=again, ckpt_path="trained.ckpt")

    (root / "test/dark/more.png").write_bytes(encode(tiny_image("dark", 500), ".png"))  # a fit reads no test image
    resume()
    for change in (
        lambda: add_images(root),
        lambda: next((root / "train/dark").glob("*.jpg")).rename(root / "train/dark/zzz.jpg"),  # the order is another
        lambda: next((root / "train/dark").glob("*.png")).rename(root / "train/bright/zzz.png"),
    ):
        change()
        with pytest.raises(UserError, match=r"`root` .*tiny: the training images are not those of the run \(now "):
            resume()
    assert {path.name for path in Path().iterdir()} == before


def validated(data: CIFAR10DataModule, model: ImageClassifier) -> set[bytes]:
    """Validate, and return the images that were scored."""
    quiet_trainer().validate(model, datamodule=data, verbose=False)
    assert data.val is not None
    return {image.numpy().tobytes() for image in data.val.images}


def test_validation_of_changed_data_is_said_and_has_no_image_that_was_trained_on(
    trained: tuple[ImageClassifier, CIFAR10DataModule],
) -> None:
    model, data = trained
    assert data.train is not None
    before = validated(Run("trained.ckpt").datamodule(), model)  # in silence, as all warnings are errors
    add_images(Path(data.hparams["root"]), number=40)
    with pytest.warns(UserWarning, match=r"validation images are not those .*12 images.*they are held out as in the"):
        now = validated(Run("trained.ckpt").datamodule(), model)
    assert now > before
    assert not now & {image.numpy().tobytes() for image in data.train.images}
    quiet_trainer().test(model, datamodule=Run("trained.ckpt").datamodule(), verbose=False)


def test_a_val_folder_that_changed_is_said(tmp_path: Path) -> None:
    files = tiny_files(6, 3)
    files |= {name.replace("test/", "val/"): content for name, content in files.items() if name.startswith("test")}
    root = write_files(tmp_path / "own", files)
    data = CIFAR10DataModule(source="images", root=str(root), batch_size=4)
    data.setup("fit")
    (root / "train/dark/0.jpg").rename(root / "val/dark/0.jpg")
    again = CIFAR10DataModule(**data.hparams)
    again.load_state_dict(data.state_dict())
    with pytest.warns(UserWarning, match="validation images are not those .*some of them may have been trained on"):
        again.setup("validate")


def test_a_checkpoint_without_fingerprints_is_said(trained: tuple[ImageClassifier, CIFAR10DataModule]) -> None:
    checkpoint = torch.load("trained.ckpt", weights_only=True)
    assert checkpoint.pop("CIFAR10DataModule").keys() == {"train", "val", "limits"}
    torch.save(checkpoint, "old.ckpt")
    with pytest.warns(UserWarning, match=r"then not known\): some of them may have been trained on"):
        Run("old.ckpt").datamodule().setup("validate")


@pytest.mark.parametrize(("scale", "is_refused"), [(None, False), (255.0, False), (1.0, True)])
def test_a_subclass_may_return_an_ordinary_loader_of_bytes_or_of_floats_up_to_1(
    scale: float | None, is_refused: bool
) -> None:
    images = torch.randint(256, (32, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen: list[Tensor] = []

    class Ordinary(CIFAR10DataModule):
        def setup(self, stage: str) -> None:
            pass

        def train_dataloader(self) -> Any:
            given = images / scale if scale else images
            return DataLoader(TensorDataset(given, torch.arange(32) % 10), batch_size=16, drop_last=True)

        def val_dataloader(self) -> list[Any]:
            return []

    model = ImageClassifier(classes=CLASSES, net=functools.partial(WideNet, width=3))
    model.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        if is_refused:
            with pytest.raises(UserError, match=r"values from 0 to 255: must be uint8, .*; the model normalises them"):
                trainer.fit(model, datamodule=Ordinary(source="synthetic"))
            return
        trainer.fit(model, datamodule=Ordinary(source="synthetic", image_sizes=[16]))
    (batch,) = seen
    assert batch.shape == (16, 3, 16, 16)
    assert torch.allclose(batch, resize(images[:16] / 255, 16), atol=1e-6)


def test_a_network_is_initialised_from_an_ordinary_loader_without_a_step_in_the_random_numbers() -> None:
    images = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.arange(64) % 10), batch_size=16, shuffle=True)
    states = []
    for net in (WideNet, functools.partial(FastCNN, widths=[4, 4], num_convs=1)):
        model = ImageClassifier(classes=CLASSES, net=net)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers|.*no `val_dataloader`")
            quiet_trainer(max_steps=1, limit_val_batches=0).fit(model, loader)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    expected = FastCNN(10, widths=(4, 4), num_convs=1)
    expected.prepare(images / 255)
    filters = model.get_parameter("net.whiten.weight")
    assert torch.allclose(filters.abs(), expected.whiten.weight.abs(), rtol=1e-2, atol=1e-2)  # of either sign


def test_predictions_come_in_the_order_of_the_test_images(
    trained: tuple[ImageClassifier, CIFAR10DataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = trained
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 10})
    batches: Any = quiet_trainer().predict(model, datamodule=CIFAR10DataModule(**data.hparams))
    data.setup("test")
    assert data.test is not None
    assert torch.allclose(torch.cat(batches).softmax(1), model.predict(data.test.images.permute(0, 3, 1, 2)), atol=1e-6)


def test_test_images_that_changed_since_the_test_are_said(trained: tuple[ImageClassifier, CIFAR10DataModule]) -> None:
    model, data = trained
    data.setup("test")
    for folder in ("run/checkpoints", "damaged/checkpoints"):
        Path(folder).mkdir(parents=True)
        shutil.copy("trained.ckpt", f"{folder}/best.ckpt")
        Path(folder).with_name("config.yaml").write_text("{}")
    Path("run/results.json").write_text(describe(model, data, {}).to_json())
    Path("damaged/results.json").write_text("")
    Run("run").datamodule().setup("test")
    root = Path(data.hparams["root"])
    (root / "test/dark/more.png").write_bytes(encode(tiny_image("dark", 500), ".png"))
    Run("damaged").datamodule().setup("test")
    with pytest.warns(UserWarning, match=r"test images are not those of the run run \(now 25 images.*then 24 images"):
        Run("run").datamodule().setup("test")
    loaded = Run("damaged").datamodule()
    loaded.setup("test")
    with pytest.warns(UserWarning, match="the test images are not those of the run run"):
        Run("run").datamodule().take_test(loaded)


def test_a_home_folder_is_expanded_before_it_is_used_and_saved(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path.home()
    home.mkdir()
    tiny_root.rename(home / "tiny")
    data = CIFAR10DataModule(source="images", root="~/tiny", cache_dir="~/kept")
    assert (data.hparams["root"], data.hparams["cache_dir"]) == (str(home / "tiny"), str(home / "kept"))
    assert list((home / "kept").iterdir())
    assert not Path("~").exists()
    for name in ("~/.cache/cifar_lit", str(home / ".cache/cifar_lit")):  # the default is another for each user
        assert CIFAR10DataModule(source="synthetic", cache_dir=name).hparams["cache_dir"] == "~/.cache/cifar_lit"
    for name in ("root", "cache_dir"):
        with pytest.raises(
            UserError, match=f"`{name}` is ~nobody-here/x: must be a complete path: there is no such home"
        ):
            CIFAR10DataModule(**dict[str, Any]({"source": "synthetic", name: "~nobody-here/x"}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 8.5}, "`batch_size` is 8.5: must be a whole number"),
        ({"batch_size": float("nan")}, "`batch_size` is nan: must be at least 1"),
        ({"cutout": float("nan")}, "`cutout` is nan: must be at least 0"),
        ({"crop_padding": float("inf")}, "`crop_padding` is inf: must be a whole number"),
        ({"val_size": float("inf")}, "`val_size` is inf: must be a whole number of images, or a fraction below 1"),
        ({"image_sizes": [float("nan")]}, r"`image_sizes` is \[nan\]: must be sizes of at least 8"),
        ({"image_sizes": [16.5]}, r"`image_sizes` is \[16.5\]: must be sizes of at least 8"),
        ({"batch_size": 0}, "`batch_size` is 0: must be at least 1"),
        ({"batch_size": -3}, "`batch_size` is -3: must be at least 1"),
        ({"val_size": float("nan")}, "`val_size` is nan: must be at least 0"),
        (
            {"source": "imagenet"},
            "`source` is imagenet: must be one of cifar10, cifar100, images, synthetic, torchvision",
        ),
        ({"val_size": -1}, "`val_size` is -1: must be at least 0"),
        ({"val_size": 1.5}, "`val_size` is 1.5: must be a whole number of images, or a fraction below 1"),
        ({"val_size": 1.0}, "`val_size` is 1.0: must be a whole number of images, or a fraction below 1"),
        ({"split_seed": -1}, "`split_seed` is -1: must be at least 0"),
        ({"seed": -1}, "`seed` is -1: must be at least 0"),
        ({"crop_padding": -1}, "`crop_padding` is -1: must be at least 0"),
        ({"crop_padding": 32}, "`crop_padding` is 32: must be less than 32, the image size"),
        ({"cutout": -2}, "`cutout` is -2: must be at least 0"),
        ({"flip": "twice"}, "`flip` is twice: must be one of none, random, alternating"),
        *(
            ({name: value}, rf"`{name}` is {re.escape(str(value))}: must be from 0 to 1")
            for name in ("brightness", "contrast", "saturation", "erasing")
            for value in (-0.1, 1.5, float("nan"))
        ),
        *(
            ({name: value}, rf"`{name}` is {re.escape(str(value))}: must be 0, or from 0.01 to 100")
            for name in ("mixup", "cutmix")
            for value in (-1.0, 1e-9, float("inf"), float("nan"))
        ),
        ({"image_sizes": [16, 7]}, r"`image_sizes` is \[16, 7\]: must be sizes of at least 8"),
    ],
)
def test_an_argument_outside_its_range_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"^{expected}$"):
        CIFAR10DataModule(**{"source": "synthetic"} | options)


def test_a_batch_larger_than_the_data_is_refused(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=10, batch_size=51)
    with pytest.raises(UserError, match="`batch_size` is 51, and there are 50 training images"):
        data.setup("fit")


def test_cifar10_is_the_default_and_nothing_is_read_or_downloaded_for_its_classes(tmp_path: Path) -> None:
    data = CIFAR10DataModule(root=str(tmp_path / "data"))
    assert data.classes[3] == "cat"
    assert data.source.title == "CIFAR-10"
    assert not (tmp_path / "data").exists()


def test_images_given_as_cifar10_are_named(tiny_root: Path) -> None:
    with pytest.raises(UserError, match=r"`root` .*tiny looks like images of your own: set `source` to images"):
        CIFAR10DataModule(root=str(tiny_root))


def test_hyper_parameters_are_plain_values() -> None:
    options = {"batch_size": np.int64(32), "val_size": np.float64(0.1), "root": Path("here"), "image_sizes": (16, 32)}
    hparams = CIFAR10DataModule(source="synthetic", **options).hparams  # type: ignore[arg-type]
    assert hparams["root"] == str(Path("here").absolute())
    assert {name: type(value) for name, value in hparams.items()} == {
        **dict.fromkeys(("source", "root", "cache_dir", "flip", "duplicates", "resize"), str),
        **dict.fromkeys(("batch_size", "split_seed", "seed", "crop_padding", "cutout", "image_size"), int),
        **dict.fromkeys(("mixup", "cutmix", "brightness", "contrast", "saturation", "erasing"), float),
        "trivial_augment": bool,
        **{"mirror": type(None), "dataset": type(None), "val_size": float, "image_sizes": list},
    }
