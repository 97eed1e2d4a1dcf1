"""The Lightning module: a network, its normalisation, loss, metrics and optimizer."""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from cifar_lit.checkpoint import find_checkpoint, hyper_parameters, load_checkpoint
from cifar_lit.metrics import MeanLoss
from cifar_lit.networks import Network, NetworkFactory, TutorialCNN, build_network, describe_network
from cifar_lit.optim import Schedule, lr_factor, make_optimizer
from cifar_lit.pretrained import read_pretrained
from cifar_lit.sources.picture import fit_picture, read_picture
from cifar_lit.views import Views, mean_over_views

Batch = tuple[Tensor, Tensor]
"""Images ``(N, 3, 32, 32)``, float32 in [0, 1], and labels ``(N,)``, int64. Training images may have another size."""


class ImageClassifier(LightningModule):
    """Trains a network to tell the classes of 32x32 colour pictures apart, with cross-entropy and SGD.

    The hyper-parameters are kept as plain values, so a checkpoint alone rebuilds the module under
    ``weights_only=True`` and knows the names of its classes.

    Args:
        classes: The names of the classes, in the order of the labels; at least two.
        net: The network: a class of ``cifar_lit.networks``, with its own options behind a further dot.
        lr: Peak learning rate of SGD, above 0.
        momentum: Momentum of SGD, from 0 (none) to below 1.
        nesterov: Use Nesterov's momentum; needs ``momentum`` above 0.
        weight_decay: L2 penalty of SGD on every parameter, 0 or more.
        schedule: How the learning rate falls, step by step, after the warm-up: not at all, linearly or as a cosine.
        warmup_epochs: Epochs (also parts of one) in which the learning rate rises linearly to ``lr``.
        mean: What is subtracted from each colour channel of an image in [0, 1].
        std: What each colour channel is divided by after that, each above 0.
        label_smoothing: The share of the target that is spread evenly over all classes while training, from 0 to below
            1 (arXiv 1512.00567); the losses on validation and test are without it.
        muon_lr: Peak learning rate of Muon for the filters of the convolutions, in which case lr is that of all other
            parameters; 0 for SGD alone.
        muon_momentum: Momentum of Muon, from 0 to below 1.
        test_views: Beside the figures on the test images as they are, give the accuracy of the mean over views of each:
            the image and its mirror image, or also both moved by one pixel to two sides.
        compile: Compile the network before the first step, in place, so that checkpoints are the same.

    Raises:
        ValueError: If an argument is outside its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        classes: Sequence[str],
        net: NetworkFactory = TutorialCNN,
        lr: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        schedule: Schedule = "constant",
        warmup_epochs: float = 0.0,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
        label_smoothing: float = 0.0,
        muon_lr: float = 0.0,
        muon_momentum: float = 0.6,
        test_views: Literal["none"] | Views = "none",
        compile: bool = False,  # noqa: A002
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        _check_options(options)
        options["net"] = describe_network(net)
        self.save_hyperparameters({name: _plain(value) for name, value in options.items()})
        self.classes = list(classes)
        self.net = build_network(options["net"], num_classes=len(classes)).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.normalize = tuple(mean) != (0.0, 0.0, 0.0) or tuple(std) != (1.0, 1.0, 1.0)
        # What the summary and the graph in TensorBoard are made with: the tutorial's batch.
        self.example_input_array = torch.zeros(64, 3, 32, 32)
        self.last_lr = float(lr)
        self._batch_results: tuple[Tensor, Tensor, Tensor] = (torch.zeros(()), torch.zeros(0), torch.zeros(0))
        self._make_metrics(len(classes))

    def _make_metrics(self, num_classes: int) -> None:
        def accuracy(**options: Any) -> MulticlassAccuracy:
            return MulticlassAccuracy(num_classes, validate_args=False, **options)

        self.train_loss = MeanLoss()
        self.train_accuracy = accuracy(average="micro")
        self.val_loss = MeanLoss()
        self.val_accuracy = accuracy(average="micro")
        self.test_loss = MeanLoss()
        test_metrics: dict[str, Metric] = {
            "Accuracy/test": accuracy(average="micro"),
            "MacroAccuracy/test": accuracy(average="macro"),
        }
        self.test_views_accuracy = accuracy(average="micro")
        if num_classes > 5:
            test_metrics["Top5Accuracy/test"] = accuracy(average="micro", top_k=5)
        self.test_metrics = nn.ModuleDict(test_metrics)
        self.test_class_accuracy = accuracy(average="none")
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: ``(N, 3, 32, 32)``, float32 in [0, 1].

        Returns:
            ``(N, num_classes)``, float32.
        """
        images = images.to(self.mean.dtype)  # of the weights, where --trainer.precision made them other than float32
        if self.normalize:
            images = (images - self.mean) / self.std
        logits: Tensor = self.net(images)
        return logits

    @classmethod
    def from_run(cls, path: str | Path) -> "ImageClassifier":
        """Load the model of a run, ready to predict.

        Args:
            path: The run's folder, of which the best checkpoint is taken, a checkpoint, or an export as safetensors.

        Returns:
            The model, on the CPU and in evaluation mode.

        Raises:
            ValueError: If there is no good checkpoint.
        """
        file = find_checkpoint(Path(path))
        if file.suffix == ".safetensors":
            options, weights = read_pretrained(file)
        else:
            checkpoint = load_checkpoint(file)
            (options, _), weights = hyper_parameters(checkpoint, file), checkpoint["state_dict"]
        try:
            model = cls(**options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file} has settings that this version does not take: {error}") from error
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit its network: {error}") from error
        return model.eval()

    @torch.inference_mode()
    def predict(
        self,
        images: Tensor | Sequence[Image.Image | str | Path],
        *,
        views: Literal["none"] | Views = "none",
        batch_size: int = 100,
    ) -> Tensor:
        """Compute the probabilities of the classes.

        Args:
            images: ``(N, 3, 32, 32)``, uint8, or float in [0, 1]; anywhere, they are moved to the model. Or pictures of
                any size and mode, Pillow's or files, which are prepared as those of the training were.
            views: Take the mean over views of each image, as for ``test_views``.
            batch_size: Images that are looked at together: it changes no figure beyond rounding.

        Returns:
            ``(N, num_classes)``, float32, on the CPU; their names are in ``classes``.

        Raises:
            ValueError: If a tensor has another shape, or a file is not a picture.
        """
        if not isinstance(images, Tensor):
            pixels = [_read_file(image) if isinstance(image, str | Path) else fit_picture(image) for image in images]
            images = torch.from_numpy(np.array(pixels, np.uint8).reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2)
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(f"images has the shape {tuple(images.shape)}: give (N, 3, 32, 32)")
        probabilities = [torch.zeros(0, len(self.classes))]
        for batch in torch.split(images, batch_size):
            batch = batch.to(self.mean.device)
            floats = batch.to(self.mean.dtype, memory_format=torch.channels_last)
            floats = floats.div_(255) if batch.dtype == torch.uint8 else floats
            logits = self(floats) if views == "none" else mean_over_views(self, floats, views)
            probabilities.append(logits.float().softmax(1).cpu())
        return torch.cat(probabilities)

    def setup(self, stage: str) -> None:
        """Let a network that starts from statistics of the training images see some of them.

        Args:
            stage: What the Trainer is about to do.

        Raises:
            ValueError: If there is no data module that can show it some.
        """
        if stage == "fit" and type(self.net).prepare is not Network.prepare:
            data: Any = getattr(self.trainer, "datamodule", None)
            if not hasattr(data, "sample_images"):
                name = type(self.net).__name__
                raise ValueError(f"{name} needs training images to start from: fit it with a CIFAR10DataModule")
            with torch.no_grad():
                self.net.prepare((data.sample_images() - self.mean.cpu()) / self.std.cpu())

    def on_train_start(self) -> None:
        """Compile the network, where that is asked for."""
        if self.hparams["compile"]:
            self.net.compile()  # in place and not the module: the names of the weights stay, and so does self.log

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch.

        Args:
            batch: Images and labels.
            batch_idx: The batch's place in the epoch.

        Returns:
            The mean cross-entropy, a scalar.
        """
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        self._batch_results = loss.detach(), logits.detach(), labels
        return loss

    def on_after_backward(self) -> None:
        """Count the batch, not before all that may fail is behind it: a training that goes on there counts it once."""
        loss, logits, labels = self._batch_results
        self.train_loss.update(loss, len(labels))
        self.train_accuracy.update(logits, labels)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the learning rate of the step, because the schedule moves on before the epoch is logged.

        Args:
            optimizer: What is about to make the step.
        """
        self.last_lr = optimizer.param_groups[0]["lr"]

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means and its learning rate, once."""
        self._log_epoch({"Loss/train": self.train_loss, "Accuracy/train": self.train_accuracy, "lr": self.last_lr})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the validation images.

        Args:
            batch: Images and labels.
            batch_idx: The batch's place.
        """
        images, labels = batch
        logits = self(images)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.val_accuracy.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the figures on validation."""
        self._log_epoch({"Loss/val": self.val_loss, "Accuracy/val": self.val_accuracy})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of the test images.

        Args:
            batch: Images and labels.
            batch_idx: The batch's place.
        """
        images, labels = batch
        logits = self(images)
        self.test_loss.update(F.cross_entropy(logits, labels), len(labels))
        for metric in (*self.test_metrics.values(), self.test_class_accuracy, self.test_confusion):
            assert isinstance(metric, Metric)
            metric.update(logits, labels)
        if self.hparams["test_views"] != "none":
            self.test_views_accuracy.update(mean_over_views(self, images, self.hparams["test_views"]), labels)

    def on_test_epoch_end(self) -> None:
        """Log the figures on test, over all classes and for each."""
        views = {"ViewsAccuracy/test": self.test_views_accuracy} if self.hparams["test_views"] != "none" else {}
        per_class = zip(self.classes, self.test_class_accuracy.compute(), strict=True)
        self._log_epoch(
            {
                "Loss/test": self.test_loss,
                **views,
                **{name: metric for name, metric in self.test_metrics.items() if isinstance(metric, Metric)},
                **{f"ClassAccuracy/test/{name}": accuracy for name, accuracy in per_class},
            }
        )
        self.test_class_accuracy.reset()
        self.test_confusion.reset()

    def _log_epoch(self, values: Mapping[str, Metric | Tensor | float]) -> None:
        figures = {
            name: float(value.compute() if isinstance(value, Metric) else value) for name, value in values.items()
        }
        for value in values.values():
            if isinstance(value, Metric):
                value.reset()
        # For the checkpoints, the bar and the results; the metrics have already added up what all processes counted.
        self.log_dict(figures, on_step=False, on_epoch=True, logger=False)
        # The loggers get them here and not from the Trainer, which would do it after the checkpoint of the epoch is
        # saved: a run that was killed between the two would lack a point. The x-axis is the epoch, as in the tutorial.
        # The curves belong to fit and to the test at its end: validating a checkpoint later adds no point to them.
        if self.trainer.state.fn != "validate" and not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.current_epoch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of a model whose labels mean something else.

        Args:
            checkpoint: What was loaded.

        Raises:
            ValueError: If the checkpoint's classes are not this module's.
        """
        trained_for = checkpoint["hyper_parameters"]["classes"]
        if trained_for != self.classes:
            raise ValueError(
                f"the checkpoint was trained for the classes {', '.join(trained_for)}, and the data has "
                f"{', '.join(self.classes)}: give the data that it was trained on"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the SGD optimizer and, where the learning rate is not constant, its schedule per step.

        Returns:
            A ``torch.optim.SGD``, alone or with a scheduler whose interval is the step.
        """
        options = self.hparams
        sgd = {name: options[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        muon = {name: options[name] for name in ("muon_lr", "muon_momentum")}
        optimizer = make_optimizer(self.parameters(), **muon, **sgd)
        if options["schedule"] == "constant" and options["warmup_epochs"] == 0:
            return optimizer
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ValueError("--model.schedule and --model.warmup_epochs need --trainer.max_epochs or max_steps")
        self.trainer.fit_loop.setup_data()  # with max_steps, the number of batches is not known before
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        factor = functools.partial(
            lr_factor,
            num_steps=int(num_steps),
            num_warmup_steps=min(int(num_steps) - 1, round(steps_per_epoch * options["warmup_epochs"])),
            schedule=options["schedule"],
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _read_file(path: str | Path) -> NDArray[np.uint8]:
    with Path(path).open("rb") as file:
        try:
            return read_picture(file)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error


def _check_options(options: dict[str, Any]) -> None:
    def check(name: str, good: bool, expected: str) -> None:
        if not good:
            value = options[name]
            raise ValueError(f"--model.{name} is {list(value) if isinstance(value, tuple) else value}: give {expected}")

    for name in ("momentum", "label_smoothing", "muon_momentum"):
        check(name, 0 <= options[name] < 1, "a number from 0 to below 1")
    for name in ("weight_decay", "warmup_epochs", "muon_lr"):
        check(name, options[name] >= 0, "0 or more")
    for name, choices in (("schedule", get_args(Schedule)), ("test_views", ("none", *get_args(Views)))):
        check(name, options[name] in choices, f"one of {', '.join(choices)}")
    check("classes", len(options["classes"]) >= 2, "at least two names")
    check("lr", options["lr"] > 0, "a number above 0")
    check("nesterov", not options["nesterov"] or options["momentum"] > 0, "false, or a momentum above 0 beside it")
    check("std", min(options["std"]) > 0, "three numbers above 0")


def _plain(value: Any) -> Any:
    """Make a value of Python's own types: a checkpoint with numpy's would be unreadable under weights_only."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
