"""The module: its steps and figures, its optimizer, and that a checkpoint alone rebuilds it."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.metrics import MeanLoss
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, TutorialCNN
from cifar_lit.optim import Muon
from cifar_lit.views import mean_over_views
from tests.networks.test_base import WideNet

CLASSES = ["a", "b", "c"]


def quiet_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


@pytest.fixture
def data(tiny_root: Path) -> CIFAR10DataModule:
    return CIFAR10DataModule(source="images", root=str(tiny_root), val_size=15, batch_size=8)


def test_it_returns_sgd_with_the_options_given() -> None:
    module = ImageClassifier(classes=CLASSES, lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.1)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay", "dampening")} == {
        "lr": 0.3,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.1,
        "dampening": 0,
    }
    assert sum(parameter.numel() for parameter in group["params"]) == sum(p.numel() for p in module.parameters())


def test_the_defaults_are_the_tutorials() -> None:
    options = ImageClassifier(classes=CLASSES).hparams
    assert (options["lr"], options["momentum"], options["weight_decay"], options["schedule"]) == (
        0.01,
        0,
        0,
        "constant",
    )


def test_muon_takes_the_filters_and_sgd_the_rest() -> None:
    module = ImageClassifier(classes=CLASSES, lr=0.05, momentum=0.85, nesterov=True, muon_lr=0.2, muon_momentum=0.7)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is Muon
    others, filters = optimizer.param_groups
    assert {parameter.ndim for parameter in filters["params"]} == {4}
    assert {parameter.ndim for parameter in others["params"]} == {1, 2}
    assert len(filters["params"]) + len(others["params"]) == len(list(module.parameters()))
    assert (filters["lr"], filters["muon_momentum"]) == (0.2, 0.7)
    assert (others["lr"], others["momentum"], others["nesterov"]) == (0.05, 0.85, True)


def test_frozen_weights_stay_out_of_the_optimizer() -> None:
    module = ImageClassifier(classes=CLASSES)
    frozen = next(module.net.parameters()).requires_grad_(False)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert not any(parameter is frozen for parameter in optimizer.param_groups[0]["params"])


def test_labels_are_smoothed_in_training_alone(data: CIFAR10DataModule) -> None:
    data.setup("fit")
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    module = ImageClassifier(classes=data.classes, label_smoothing=0.3)
    loss = module.training_step((images, labels), 0)
    logs = torch.log_softmax(module(images), dim=1)
    by_hand = -(0.7 * logs[torch.arange(6), labels] + 0.3 * logs.mean(1)).mean()
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)
    module.validation_step((images, labels), 0)
    plain = nn.functional.cross_entropy(module(images), labels).detach()
    assert float(module.val_loss.compute()) == pytest.approx(float(plain), rel=1e-6)


@pytest.mark.parametrize("views", ["mirror", "mirror_shift"])
def test_views_are_averaged_and_the_plain_figure_stays(views: Any) -> None:
    module = ImageClassifier(classes=CLASSES, test_views=views).eval()
    module.trainer = quiet_trainer(max_epochs=1)
    images, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 3
    with torch.no_grad():
        module.test_step((images, labels), 0)
        shown, mirrored = module(images), module(images.flip(3))
        moved = []
        for row, column in ((-1, -1), (1, 1)):
            padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
            moved.append(padded[:, :, 1 + row : 33 + row, 1 + column : 33 + column])
        expected = (shown + mirrored) / 2
        if views == "mirror_shift":
            expected = expected / 2 + sum(module(view) + module(view.flip(3)) for view in moved) / 8
        assert torch.allclose(mean_over_views(module, images, views), expected, atol=1e-6)
    for metric, logits in ((module.test_metrics["Accuracy/test"], shown), (module.test_views_accuracy, expected)):
        assert float(metric.compute()) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))  # type: ignore[operator]


def test_a_network_sees_training_images_before_the_fit_and_no_others(data: CIFAR10DataModule) -> None:
    seen: list[torch.Tensor] = []

    class Curious(TutorialCNN):
        def prepare(self, images: torch.Tensor) -> None:
            seen.append(images)

    module = ImageClassifier(classes=data.classes, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    module.net = Curious(3)
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    assert data.train is not None
    (images,) = seen
    assert torch.allclose(images, (data.train.images / 255 - 0.5) / 0.1, atol=1e-5)
    trainer.test(module, datamodule=data, verbose=False)
    assert len(seen) == 1


def test_a_network_that_starts_from_images_is_not_trained_without_them(data: CIFAR10DataModule) -> None:
    module = ImageClassifier(classes=data.classes, net=FastCNN)
    data.setup("fit")
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=False)
    with pytest.raises(ValueError, match="FastCNN needs training images to start from"):
        trainer.fit(module, data.train_dataloader(), data.val_dataloader())


@pytest.mark.slow
def test_compiling_changes_neither_names_nor_figures(data: CIFAR10DataModule, tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = ImageClassifier(classes=data.classes, compile=compiled)
        trainer = quiet_trainer(max_epochs=2, enable_checkpointing=False)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(tmp_path / "compiled.ckpt")
        weights.append(module.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-4)
    rebuilt = ImageClassifier.load_from_checkpoint(tmp_path / "compiled.ckpt", weights_only=True, map_location="cpu")
    assert torch.equal(rebuilt.state_dict()["net.layers.conv1.weight"], weights[1]["net.layers.conv1.weight"])


def test_the_schedule_moves_with_each_step(data: CIFAR10DataModule) -> None:
    # 45 images in batches of 8 are 6 steps an epoch.
    module = ImageClassifier(classes=CLASSES, lr=0.1, schedule="linear", warmup_epochs=0.5)
    rates: list[float] = []

    class Recorder(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = quiet_trainer(max_epochs=2, enable_checkpointing=False, callbacks=[Recorder()])
    trainer.fit(module, datamodule=data)
    rise, fall = [1 / 3, 2 / 3, 1], [1 - i / 9 for i in range(9)]
    assert rates == pytest.approx([0.1 * factor for factor in rise + fall])
    logged = float(trainer.callback_metrics["lr"])
    assert logged == pytest.approx(rates[-1])  # that of the last step


def test_the_images_are_normalised_by_buffers_inside_the_module() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    module = ImageClassifier(classes=CLASSES, mean=mean, std=std)
    images = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(images[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    assert torch.allclose(module(images), module.net(by_hand))
    assert {"mean", "std"} <= module.state_dict().keys()
    off = ImageClassifier(classes=CLASSES)
    assert torch.equal(off(images), off.net(images))


def test_the_figures_are_those_counted_by_hand(data: CIFAR10DataModule) -> None:
    torch.manual_seed(1)
    module = ImageClassifier(classes=data.classes, lr=0.02, momentum=0.9)
    trainer = quiet_trainer(max_epochs=3, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    (figures,) = trainer.test(module, datamodule=data, verbose=False)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}

    data.setup("test")
    assert data.test is not None
    images, labels = data.on_after_batch_transfer((data.test.images, data.test.labels), 0)
    with torch.no_grad():
        logits = module.eval()(images)
    right = logits.argmax(1) == labels
    assert figures["Accuracy/test"] == pytest.approx(float(right.float().mean()))
    assert figures["Loss/test"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    per_class = [float(right[labels == label].float().mean()) for label in range(3)]
    assert [figures[f"ClassAccuracy/test/{name}"] for name in data.classes] == pytest.approx(per_class)
    assert figures["MacroAccuracy/test"] == pytest.approx(sum(per_class) / 3)
    assert "Top5Accuracy/test" not in figures  # there are three classes
    assert 0.5 < figures["Accuracy/test"] <= 1


def test_a_loss_is_the_mean_over_images_also_where_the_last_batch_is_short() -> None:
    loss = MeanLoss()
    loss.update(torch.tensor(1.0), 7)
    loss.update(torch.tensor(2.0), 1)
    assert float(loss.compute()) == pytest.approx(9 / 8)


def test_the_logged_training_loss_counts_every_image_once(data: CIFAR10DataModule) -> None:
    # 45 images in batches of 8: the last one has 5.
    seen: list[tuple[float, int]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            seen.append((float(outputs["loss"]), len(batch[1])))

    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=False, callbacks=[Recorder()])
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    assert [n for _, n in seen] == [8, 8, 8, 8, 8, 5]
    assert float(trainer.callback_metrics["Loss/train"]) == pytest.approx(sum(loss * n for loss, n in seen) / 45)


def test_double_precision_trains(data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=False, precision="64-true")
    module = ImageClassifier(classes=data.classes)
    trainer.fit(module, datamodule=data)
    assert module.mean.dtype == torch.float64
    assert torch.isfinite(trainer.callback_metrics["Loss/train"])


def test_top_five_is_counted_where_there_are_more_than_five_classes() -> None:
    module = ImageClassifier(classes=list("abcdefg"), net=functools.partial(WideNet, width=3))
    module.trainer = quiet_trainer(max_epochs=1)
    images, labels = torch.rand(50, 3, 32, 32), torch.arange(50) % 7
    module.test_step((images, labels), 0)
    metric = module.test_metrics["Top5Accuracy/test"]
    expected = (module(images).topk(5).indices == labels[:, None]).any(1).float().mean()
    assert float(metric.compute()) == pytest.approx(float(expected))  # type: ignore[operator]


@pytest.mark.parametrize("net", [TutorialCNN, WideNet, functools.partial(WideNet, width=5)])
def test_a_checkpoint_alone_rebuilds_a_module_made_in_python(net: Any, data: CIFAR10DataModule, tmp_path: Path) -> None:
    module = ImageClassifier(classes=data.classes, net=net, lr=0.02, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    path = tmp_path / "own.ckpt"
    trainer.save_checkpoint(path)

    rebuilt = ImageClassifier.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert rebuilt.classes == ["bright", "dark", "green"]
    assert type(rebuilt.net) is type(module.net)
    assert rebuilt.hparams["lr"] == 0.02
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(rebuilt.eval()(images), module.eval()(images))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"classes": ["one"]}, "classes is .*: give at least two names"),
        ({"lr": 0}, "lr is 0: give a number above 0"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"nesterov": True}, "nesterov is True: give false, or a momentum above 0 beside it"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"std": (1, 0, 1)}, r"std is \[1, 0, 1\]"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: give a number from 0 to below 1"),
        ({"muon_lr": -0.1}, "muon_lr is -0.1: give 0 or more"),
        ({"muon_momentum": 1}, "muon_momentum is 1"),
        ({"test_views": "all"}, "test_views is all: give one of none, mirror, mirror_shift"),
    ],
)
def test_an_argument_outside_its_range_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"--model.{expected}"):
        ImageClassifier(**{"classes": CLASSES, **options})
