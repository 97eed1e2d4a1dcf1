"""The module: its steps and metrics, its optimizer, and that a checkpoint alone rebuilds it."""

import functools
import inspect
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import nn

from cifar_lit.callbacks.best import Best
from cifar_lit.callbacks.nonfinite import NonFiniteGuard
from cifar_lit.callbacks.saver import Saver
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, StrongCNN, TutorialCNN
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


@pytest.mark.parametrize("tta", ["none", "mirror", "mirror_shift", "mirror_shift_unsure"])
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


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-true"])
def test_the_losses_are_means_of_float32_in_any_precision(precision: Any, data: CIFAR10DataModule) -> None:
    seen: list[tuple[torch.Tensor, int]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            seen.append((outputs["loss"], len(batch[1])))

    torch.manual_seed(0)
    module = ImageClassifier(classes=data.classes, mean=(0.5, 0.5, 0.5))
    trainer = quiet_trainer(max_epochs=1, precision=precision, limit_train_batches=3, callbacks=[Recorder()])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*AMP.*")
        trainer.fit(module, datamodule=data)
    assert {loss.dtype for loss, _ in seen} == {torch.float64 if precision == "64-true" else torch.float32}
    mean = sum(float(loss) * n for loss, n in seen) / sum(n for _, n in seen)
    assert float(trainer.callback_metrics["Loss/train"]) == pytest.approx(mean, rel=1e-6)
    assert data.val is not None
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        logits = module.eval()(data.val.images.permute(0, 3, 1, 2))
    loss = float(nn.functional.cross_entropy(logits.double(), data.val.labels))
    assert float(trainer.callback_metrics["Loss/val"]) == pytest.approx(loss, rel=1e-6)
    states = {name: getattr(module.val_loss, name).dtype for name in ("total", "num_images")}
    assert states == {"total": torch.float64, "num_images": torch.int64}


def test_a_training_in_float64_resumes_to_the_same_weights(data: CIFAR10DataModule) -> None:
    def fit(num_epochs: int, **options: Any) -> tuple[Trainer, ImageClassifier]:
        torch.manual_seed(0)
        module = ImageClassifier(classes=data.classes, momentum=0.9, mean=(0.49, 0.48, 0.44))
        trainer = quiet_trainer(max_epochs=num_epochs, precision="64-true", limit_train_batches=2)
        trainer.fit(module, datamodule=data, **options)
        return trainer, module

    fit(1)[0].save_checkpoint("first.ckpt", weights_only=False)
    _, expected = fit(2)
    _, resumed = fit(2, ckpt_path="first.ckpt")
    for name, part in resumed.state_dict().items():
        assert part.dtype == torch.float64
        assert torch.equal(part, expected.state_dict()[name]), name


def test_a_checkpoint_with_non_finite_weights_is_refused(data: CIFAR10DataModule) -> None:
    module = ImageClassifier(classes=data.classes)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, datamodule=data)
    module.net.get_parameter("layers.linear1.bias").data[3] = torch.inf
    trainer.save_checkpoint("diverged.ckpt")
    expected = "the checkpoint is unusable: net.layers.linear1.bias has non-finite values"
    with pytest.raises(UserError, match=expected):
        ImageClassifier.load_from_checkpoint("diverged.ckpt", weights_only=True)
    with pytest.raises(UserError, match=expected):
        trainer.test(module, datamodule=data, ckpt_path="diverged.ckpt", weights_only=True)


@pytest.mark.parametrize(("accumulated", "num_batches"), [(3, 5), (4, 5), (2, 6), (9, 5)])
def test_each_step_has_the_mean_of_its_batches(accumulated: int, num_batches: int, data: CIFAR10DataModule) -> None:
    batches: list[Any] = []
    sizes: list[int] = []

    class Checker(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, *args: Any) -> None:
            batches.append(batch)

        def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            losses = [nn.functional.cross_entropy(module(images), labels) for images, labels in batches]
            given = [parameter.grad for parameter in module.parameters()]
            expected = torch.autograd.grad(torch.stack(losses).mean(), list(module.parameters()))
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(given, expected, strict=True))
            sizes.append(len(batches))
            batches.clear()

    options = {"limit_train_batches": num_batches, "accumulate_grad_batches": accumulated, "limit_val_batches": 0}
    trainer = quiet_trainer(max_epochs=1, callbacks=[Checker()], **options)
    trainer.fit(ImageClassifier(classes=CLASSES, lr=0.1), datamodule=data)
    assert sum(sizes) == num_batches
    assert len(sizes) == -(-num_batches // accumulated)


@pytest.mark.parametrize(("warmup_epochs", "num_warmup"), [(1.5, 4), (1e308, 6)])
def test_a_schedule_ends_with_a_training_whose_accumulation_changes(
    warmup_epochs: float, num_warmup: int, data: CIFAR10DataModule
) -> None:
    # 6 batches an epoch are 3 steps in the first epoch, and 2 in each of the other two.
    rates: list[float] = []

    class Recorder(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    callbacks = [GradientAccumulationScheduler({0: 2, 1: 4}), Recorder()]
    trainer = quiet_trainer(max_epochs=3, callbacks=callbacks, limit_val_batches=0)
    trainer.fit(ImageClassifier(classes=CLASSES, schedule="linear", warmup_epochs=warmup_epochs), datamodule=data)
    rise = [(i + 1) / num_warmup for i in range(num_warmup)]
    fall = [1 - i / (7 - num_warmup) for i in range(7 - num_warmup)]
    assert rates == pytest.approx([0.01 * factor for factor in rise + fall])


class Recording(DummyLogger):
    """Keeps what is logged: the step, and the metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.points.append((step, dict(metrics)))


@pytest.mark.parametrize("has_logger", [True, False])
def test_test_and_validate_return_their_metrics_and_add_no_point(has_logger: bool, data: CIFAR10DataModule) -> None:
    logger = Recording()
    seen: list[Any] = []

    class User(Callback):
        def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(trainer.logger)

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(trainer.logger)

    module = ImageClassifier(classes=data.classes)
    options = {"limit_train_batches": 2, "num_sanity_val_steps": 1}
    trainer = quiet_trainer(max_epochs=2, logger=logger if has_logger else False, callbacks=[User()], **options)
    trainer.fit(module, datamodule=data)
    num_points = len(logger.points)
    for _ in range(2):
        (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    names = ("Loss/val", "Accuracy/val", "MacroAccuracy/val")
    assert validated == {name: float(trainer.callback_metrics[name]) for name in names}
    assert len(logger.points) == num_points == (4 if has_logger else 0)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert {"Loss/test", "Accuracy/test", "ClassAccuracy/test/dark"} <= tested.keys()
    assert tested == pytest.approx({name: float(value) for name, value in trainer.callback_metrics.items()})
    if has_logger:
        ((step, point),) = logger.points[num_points:]
        assert step == 2
        assert point == pytest.approx(tested)
        assert trainer.loggers == [logger]
    assert set(seen) == {logger if has_logger else None}


class Seven(TutorialCNN):
    def __init__(self, num_classes: int) -> None:
        super().__init__(7)


class Pair(TutorialCNN):
    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images), images


class Buggy(TutorialCNN):
    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images)[:, :, 9]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Seven, r"`net`: Seven gives \(2, 7\) for 2 images: must give \(2, 3\)"),
        (Pair, r"`net`: Pair returns a tuple of \(2, 3\), \(2, 3, 32, 32\): must return logits \(2, 3\) alone"),
    ],
)
def test_a_network_with_other_logits_is_named_before_anything_starts(
    stage: str, net: Any, expected: str, data: CIFAR10DataModule
) -> None:
    module = ImageClassifier(classes=data.classes, net=net)
    with pytest.raises(UserError, match=expected):
        getattr(quiet_trainer(max_epochs=1), stage)(module, datamodule=data)
    if net is Seven:
        with pytest.raises(UserError, match=r"Seven gives \(1, 7\) for 1 images"):
            module.predict(torch.zeros(1, 3, 32, 32))


def test_a_bug_in_the_network_stays_one(data: CIFAR10DataModule) -> None:
    with pytest.raises(IndexError, match="too many indices"):
        quiet_trainer(max_epochs=1).fit(ImageClassifier(classes=data.classes, net=Buggy), datamodule=data)


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
        ({"std": (1, 0, 1)}, r"`std` is \[1, 0, 1\]: must be three numbers from 1e-6 to 1"),
        ({"mean": (1, float("nan"), 1)}, r"`mean` is \[1, nan, 1\]: must be three numbers from 0 to 1"),
        ({"label_smoothing": 1.0}, "`label_smoothing` is 1.0: must be from 0 to below 1"),
        ({"muon_lr": -0.1}, "`muon_lr` is -0.1: must be at least 0"),
        ({"muon_momentum": 1}, "`muon_momentum` is 1"),
        ({"tta": "all"}, "`tta` is all: must be one of none, mirror, mirror_shift, mirror_shift_unsure"),
        ({"net": nn.Linear}, "`net`: Linear has no default for in_features: give `net`.in_features"),
    ],
)
def test_an_argument_outside_its_range_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        ImageClassifier(**{"classes": CLASSES, **options})
    assert error.value.exit_code == 2


FLOATS = [
    (kind, name, "tuple" in str(parameter.annotation))
    for kind in (ImageClassifier, FastCNN, StrongCNN, TutorialCNN, Saver, Best, NonFiniteGuard, Throughput)
    for name, parameter in inspect.signature(kind).parameters.items()
    if "float" in str(parameter.annotation)
]
TAKEN = {("every_n_minutes", math.inf), ("every_n_minutes", 1e308)}  # never
TAKEN |= {("warmup_epochs", 1e308)}


def test_all_float_options_are_found() -> None:
    names = {name for _, name, _ in FLOATS}
    assert {"lr", "momentum", "weight_decay", "warmup_epochs", "mean", "std", "label_smoothing", "muon_lr"} <= names
    assert {"muon_momentum", "every_n_minutes"} <= names


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e308, 1e308], ids=str)
@pytest.mark.parametrize(("kind", "name", "is_tuple"), FLOATS)
def test_a_float_option_is_a_number_in_its_range(kind: Any, name: str, is_tuple: bool, value: float) -> None:
    options = {"classes": CLASSES} if kind is ImageClassifier else {}
    given = (0.5, value, 0.5) if is_tuple else value
    if (name, value) in TAKEN:
        kind(**options, **{name: given})
        return
    with pytest.raises(UserError, match=f"`{name}` is .*: must be"):
        kind(**options, **{name: given})


@pytest.mark.parametrize("std", [1e-320, 0.0, 255.0])  # the first is 0 in float32
def test_a_std_that_makes_infinities_is_refused(std: float) -> None:
    with pytest.raises(UserError, match=r"`std` is .*: must be three numbers from 1e-6 to 1"):
        ImageClassifier(classes=CLASSES, std=(0.5, std, 0.5))


def test_the_loss_is_of_all_shares_and_the_accuracy_of_the_largest() -> None:
    module = ImageClassifier(classes=CLASSES, label_smoothing=0.1)
    images = torch.randint(256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shares = torch.tensor([[0.7, 0.3, 0], [0.2, 0.8, 0], [0, 0.4, 0.6]]).repeat(2, 1)
    loss = module.training_step((images, shares), 0)
    logits = module(images)
    target = shares * 0.9 + 0.1 / 3
    assert float(loss.detach()) == pytest.approx(float(-(target * logits.log_softmax(1)).sum(1).mean().detach()))
    module.on_after_backward()
    expected = (logits.argmax(1) == torch.tensor([0, 1, 2, 0, 1, 2])).double().mean()
    assert float(module.train_accuracy.compute()) == pytest.approx(float(expected))
