"""The module: its steps and metrics, its optimizer, and that a checkpoint alone rebuilds it."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn

from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.networks.tta import tta_logits
from cifar_lit.optim import Muon
from tests.helpers.networks import DropoutNet, WideNet
from tests.helpers.trainers import quiet_trainer

CLASSES = ["a", "b", "c"]


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


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror_shift"])
def test_a_test_has_the_accuracy_with_and_without_tta(tta: Any, data: CIFAR10DataModule) -> None:
    torch.manual_seed(2)
    module = ImageClassifier(classes=data.classes, tta=tta)
    trainer = quiet_trainer()
    trainer.test(module, datamodule=data, verbose=False)
    assert data.test is not None
    assert module.predictions is not None
    images, labels = data.test.images.permute(0, 3, 1, 2) / 255, data.test.labels
    with torch.no_grad():
        logits = module.eval()(images)
        averaged = logits if tta == "none" else tta_logits(module, images, tta)
    accuracy, with_tta = ((part.argmax(1) == labels).double().mean() for part in (logits, averaged))
    assert float(trainer.callback_metrics["Accuracy/test"]) == pytest.approx(float(accuracy))
    if tta == "none":
        assert module.predictions.tta_log_probs is None
        assert "TTAAccuracy/test" not in trainer.callback_metrics
    else:
        assert float(trainer.callback_metrics["TTAAccuracy/test"]) == pytest.approx(float(with_tta))
        assert module.predictions.tta_log_probs is not None
        assert torch.allclose(module.predictions.tta_log_probs, averaged.log_softmax(1), atol=1e-5)


def test_predictions_of_three_processes_are_in_the_order_of_the_images() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(11, 3, 32, 32), torch.arange(11) % 3
    module = ImageClassifier(classes=CLASSES, tta="mirror").eval()
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in range(3):  # as the loader shares the images, in batches of two
        mine = torch.arange(rank, 11, 3)
        module._trainer = SimpleNamespace(world_size=3, global_rank=rank)  # type: ignore[assignment]
        module._fabric = None
        for batch, index in enumerate(torch.split(mine, 2)):
            with torch.no_grad():
                module.test_step((images[index], labels[index]), batch)
        collector = module.test_predictions
        for name in ("log_probs", "tta_log_probs", "labels", "index"):
            parts.setdefault(name, []).extend(getattr(collector, name))
        collector.reset()
    for name, values in parts.items():  # as after the exchange between the processes
        setattr(collector, name, values)
    predictions = collector.predictions()
    assert predictions.index.tolist() == list(range(11))
    assert predictions.labels.tolist() == labels.tolist()
    with torch.no_grad():
        assert torch.allclose(predictions.log_probs, module(images).log_softmax(1), atol=1e-6)
        assert predictions.tta_log_probs is not None
        expected = tta_logits(module, images, "mirror").log_softmax(1)
        assert torch.allclose(predictions.tta_log_probs, expected, atol=1e-6)


def test_a_second_test_replaces_the_predictions_of_the_first(
    data: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ImageClassifier(classes=data.classes)
    monkeypatch.setattr("cifar_lit.datamodule.EVALUATION_BATCH_SIZES", {"cpu": 5})
    for limit, num_images in ((None, 24), (2, 10)):
        quiet_trainer(limit_test_batches=limit).test(module, datamodule=data, verbose=False)
        assert module.predictions is not None
        assert len(module.predictions.labels) == num_images


def test_a_network_sees_training_images_before_the_fit_and_no_others(data: CIFAR10DataModule) -> None:
    seen: list[torch.Tensor] = []

    class Curious(TutorialCNN):
        def prepare(self, images: torch.Tensor) -> None:
            seen.append(images)

    module = ImageClassifier(classes=data.classes, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
    module.net = Curious(3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert data.train is not None
    (images,) = seen
    assert torch.allclose(images, (data.train.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.1, atol=1e-5)
    trainer.test(module, datamodule=data, verbose=False)
    assert len(seen) == 1


@pytest.mark.slow
def test_compiling_changes_neither_names_nor_figures(data: CIFAR10DataModule, tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = ImageClassifier(classes=data.classes, compile=compiled)
        trainer = quiet_trainer(max_epochs=2)
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

    trainer = quiet_trainer(max_epochs=2, callbacks=[Recorder()])
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


def test_bytes_and_floats_give_the_same_logits() -> None:
    module = ImageClassifier(classes=CLASSES, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(module(images), module(images / 255))
    with pytest.raises(UserError, match="int64"):
        module(images.long())


def test_predict_gives_probabilities_in_evaluation_mode(tiny_root: Path) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(classes=CLASSES, net=DropoutNet)
    images = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    probabilities = module.predict(images, batch_size=3)
    assert module.training  # as before
    assert (probabilities.shape, probabilities.dtype) == ((7, 3), torch.float32)
    assert torch.allclose(probabilities.sum(1), torch.ones(7))
    assert torch.allclose(probabilities, module.predict(images / 255), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(probabilities, module.eval()(images).softmax(1), atol=1e-6)
        mirrored = (module(images) + module(images.flip(3))) / 2
        assert torch.allclose(module.predict(images, tta="mirror"), mirrored.softmax(1), atol=1e-6)
    assert module.predict(images[:0]).shape == (0, 3)
    files = sorted((tiny_root / "test/dark").iterdir())
    of_files = module.predict(files)
    opened = [Image.open(file) for file in files]
    assert torch.equal(of_files, module.predict(opened))
    assert of_files.shape == (8, 3)


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (3, 32, 32), (2, 32, 32, 3)])
def test_predict_refuses_tensors_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"`images` has the shape .*: must be \(N, 3, 32, 32\)"):
        ImageClassifier(classes=CLASSES).predict(torch.zeros(shape))


def test_the_metrics_are_those_counted_by_hand(data: CIFAR10DataModule) -> None:
    torch.manual_seed(1)
    module = ImageClassifier(classes=data.classes, lr=0.02, momentum=0.9)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    assert data.test is not None
    images, labels = data.test.images.permute(0, 3, 1, 2) / 255, data.test.labels
    with torch.no_grad():
        logits = module.eval()(images)
    correct = logits.argmax(1) == labels
    assert metrics["Accuracy/test"] == pytest.approx(float(correct.float().mean()))
    assert metrics["Loss/test"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    per_class = [float(correct[labels == label].float().mean()) for label in range(3)]
    assert [metrics[f"ClassAccuracy/test/{name}"] for name in data.classes] == pytest.approx(per_class)
    assert metrics["MacroAccuracy/test"] == pytest.approx(sum(per_class) / 3)
    assert "Top5Accuracy/test" not in metrics  # there are three classes
    assert 0.5 < metrics["Accuracy/test"] <= 1


def test_the_logged_training_loss_counts_every_image_once(data: CIFAR10DataModule) -> None:
    # 45 images in batches of 8: the last one has 5.
    seen: list[tuple[float, int]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            seen.append((float(outputs["loss"]), len(batch[1])))

    trainer = quiet_trainer(max_epochs=1, callbacks=[Recorder()])
    trainer.fit(ImageClassifier(classes=data.classes), datamodule=data)
    assert [n for _, n in seen] == [8, 8, 8, 8, 8, 5]
    assert float(trainer.callback_metrics["Loss/train"]) == pytest.approx(sum(loss * n for loss, n in seen) / 45)


def test_double_precision_trains(data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer(max_epochs=1, precision="64-true")
    module = ImageClassifier(classes=data.classes)
    trainer.fit(module, datamodule=data)
    assert module.mean.dtype == torch.float64
    assert torch.isfinite(trainer.callback_metrics["Loss/train"])


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


def test_the_length_of_a_schedule_may_be_given_in_steps(data: CIFAR10DataModule) -> None:
    trainer = quiet_trainer(max_epochs=-1, max_steps=8)
    trainer.fit(ImageClassifier(classes=CLASSES, lr=0.1, schedule="linear"), datamodule=data)
    (scheduler,) = trainer.lr_scheduler_configs
    assert scheduler.scheduler.get_last_lr() == [0.0]
    assert trainer.global_step == 8


@pytest.mark.parametrize("options", [{"schedule": "linear"}, {"schedule": "cosine"}, {"warmup_epochs": 1.0}])
def test_a_schedule_needs_the_length_of_the_training(options: dict[str, Any], data: CIFAR10DataModule) -> None:
    with pytest.raises(UserError, match="`schedule` and `warmup_epochs` depend on the length of the training"):
        quiet_trainer(max_epochs=-1).fit(ImageClassifier(classes=CLASSES, **options), datamodule=data)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"classes": ["one"]}, "`classes` is .*: must be at least two names"),
        ({"lr": 0}, "`lr` is 0: must be above 0"),
        ({"lr": -0.1}, "`lr` is -0.1"),
        ({"momentum": 1.0}, "`momentum` is 1.0"),
        ({"nesterov": True}, "`nesterov` is True"),
        ({"weight_decay": -1}, "`weight_decay` is -1"),
        ({"warmup_epochs": -1}, "`warmup_epochs` is -1"),
        ({"std": (1, 0, 1)}, r"`std` is \[1, 0, 1\]: must be three numbers above 0"),
        ({"mean": (1, float("nan"), 1)}, r"`mean` is \[1, nan, 1\]: must be three finite numbers"),
        ({"label_smoothing": 1.0}, "`label_smoothing` is 1.0: must be from 0 to below 1"),
        ({"muon_lr": -0.1}, "`muon_lr` is -0.1: must be at least 0"),
        ({"muon_momentum": 1}, "`muon_momentum` is 1"),
        ({"tta": "all"}, "`tta` is all: must be one of none, mirror, mirror_shift"),
        ({"net": nn.Linear}, "`net` is .*: must be a subclass of cifar_lit.networks.Network"),
    ],
)
def test_an_argument_outside_its_range_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        ImageClassifier(**{"classes": CLASSES, **options})
    assert error.value.exit_code == 2
