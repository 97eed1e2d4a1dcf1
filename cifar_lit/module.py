"""The Lightning module: a network, its normalisation, loss, metrics and optimizer."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from cifar_lit.checkpoint import first_nonfinite, plain_value
from cifar_lit.data.augment import to_float
from cifar_lit.data.balance import ClassWeights, check_class_weights, loss_weights, share_of_process
from cifar_lit.data.decoding import Resize
from cifar_lit.data.loader import check_batch
from cifar_lit.data.mixing import hard_labels, mean_cross_entropy
from cifar_lit.data.options import check_image_size, scaled
from cifar_lit.errors import UserError, require
from cifar_lit.finetuning import FineTuning, Freeze
from cifar_lit.loggers import log_metrics
from cifar_lit.metrics import MacroAccuracy, MeanLoss, PredictionCollector, Predictions
from cifar_lit.networks import NetworkFactory, TutorialCNN, build_network, describe_network, lay_out
from cifar_lit.networks.tta import TTA, TTA_MODES, tta_logits
from cifar_lit.networks.winograd import Kernels
from cifar_lit.optim import Schedule, accumulation, check_optimizer_options, fit_scheduler, make_optimizer, mean_factor

Batch = tuple[Tensor, Tensor]
"""Images ``(N, 3, H, W)``, uint8 or float in [0, 1], and labels ``(N,)``, int64; in training perhaps their shares."""
REPORT_ONLY = ("AccuracyInterval/", "CalibrationError/", "Confusion/", "F1/", "Precision/", "Recall/")
"""Test metrics that are not logged: they stand in ``results.json`` and in the report."""


class ImageClassifier(FineTuning):
    """Classifies square colour images with a network that is trained with cross-entropy and SGD.

    The hyper-parameters are kept as plain values, so a checkpoint alone rebuilds the module under
    ``weights_only=True`` and knows the names of its classes. An argument outside its range is a ``UserError``.

    Losses and metrics are computed in float32 or better in any precision of the Trainer. With its
    ``accumulate_grad_batches``, a step has the mean of its batches, also the last of an epoch, which may have fewer.

    Args:
        classes: Names of the classes, in the order of the labels; at least two.
        net: The network: a class of ``cifar_lit.networks``, or any other ``nn.Module``, as my_net.MyNet; its own
            options follow after a further dot.
        lr: Peak learning rate of SGD, above 0.
        momentum: Momentum of SGD, from 0 (none) to below 1.
        nesterov: Use Nesterov momentum; needs ``momentum`` above 0.
        weight_decay: L2 penalty of SGD on every parameter, at least 0.
        schedule: How the learning rate decreases at each step after the warm-up: not at all, linearly or as a cosine.
        warmup_epochs: Epochs (or a fraction of one) in which the learning rate increases linearly to ``lr``.
        mean: Mean of each colour channel in [0, 1], which is subtracted.
        std: Standard deviation of each colour channel, by which is divided after that; each from 1e-6 to 1.
        label_smoothing: Share of the target that is spread evenly over all classes in training, from 0 to below 1
            (arXiv 1512.00567); validation and test losses are without it.
        muon_lr: Peak learning rate of Muon for the filters of the convolutions; ``lr`` is then that of all other
            parameters. 0 for SGD alone.
        muon_momentum: Momentum of Muon, from 0 to below 1.
        tta: Test-time augmentation (TTA): the test also gives the accuracy of the mean over each image and its mirror
            image (mirror), both also shifted by a pixel (mirror_shift), or that if unsure (mirror_shift_unsure).
        compile: Compile the network before the first step, in place, so that checkpoints are the same.
        image_size: Height and width of the images, from 8 to 256; given to a network that takes it.
        resize: How ``predict`` makes an image square: squash, crop or pad, as for the data module.
        class_weights: Weights of the classes in the loss, as those of ``torch.nn.CrossEntropyLoss``: a list of
            numbers above 0 in the order of the labels, or balanced, where a class of n of the N training images has
            N / (num_classes * n). The mean is over the batch of all processes. Only the training loss has them.
        weights: Start a new training from the weights in a checkpoint, a ``.safetensors`` export or a file of a
            ``state_dict``; on the command line also from a run's folder. What has the name and shape of a tensor of
            the network is loaded, after data-dependent initialisation; the rest stays initialised.
        freeze: What is not trained: nothing, or the body, which is all but the last linear layer; needs ``weights``.
        freeze_epochs: Epochs at the start in which the body is not trained; needs ``weights``.
        kernels: How 3x3 convolutions are computed in training on a CPU: direct (torch's), winograd (in float32, 64
            channels or more), auto (the faster one, by measuring), or what that chose, as {64x256@16: winograd}.

    Attributes:
        predictions: The predictions of the last test; None before.
    """

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
        tta: Literal["none", TTA] = "none",
        compile: bool = False,  # noqa: A002
        image_size: int = 32,
        resize: Resize = "squash",
        class_weights: ClassWeights = None,
        weights: str | None = None,
        freeze: Freeze = "none",
        freeze_epochs: int = 0,
        kernels: Kernels = "winograd",
    ) -> None:
        class_weights = check_class_weights(class_weights, len(classes))
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        _check_options(options)
        options["net"] = describe_network(net)
        self.save_hyperparameters({name: plain_value(value) for name, value in options.items()})
        self.classes, self.image_size = list(classes), image_size
        self.net = build_network(options["net"], num_classes=len(classes), image_size=image_size)
        self.channels_last = lay_out(self.net, image_size)
        self.use_kernels(kernels)
        self.start_from(weights, freeze, freeze_epochs)
        self._prepare_steps(mean, std, len(classes))

    def _prepare_steps(self, mean: Sequence[float], std: Sequence[float], num_classes: int) -> None:
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.normalize = tuple(mean) != (0.0, 0.0, 0.0) or tuple(std) != (1.0, 1.0, 1.0)
        self.last_lr = float(self.hparams["lr"])
        size = self.image_size  # the example is for the summary and the graph: the tutorial's batch
        self.example_input_array = torch.zeros(scaled(64, size), 3, size, size)
        self._last_batch: tuple[Tensor, Tensor, Tensor] | None = None
        self.class_weights = loss_weights(self.hparams["class_weights"], self.classes)
        self.train_loss, self.val_loss = MeanLoss(), MeanLoss()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.val_accuracy = self.train_accuracy.clone()
        self.val_macro = MacroAccuracy(num_classes, validate_args=False)
        self.num_val = 0
        self.test_predictions = PredictionCollector(num_classes)
        self.predictions: Predictions | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: ``(N, 3, image_size, image_size)``, uint8, or float in [0, 1].

        Returns:
            ``(N, num_classes)``, float32 (float64 from a network of that precision).
        """
        images = to_float(images).to(self.mean.dtype)  # which the Trainer's precision may have changed
        if self.normalize:
            images = (images - self.mean) / self.std
        logits: Tensor = self.net(images if self.channels_last else images.contiguous())
        # Loss, averages and probabilities are computed in float32 or better, whatever the precision of the network.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def on_train_start(self) -> None:
        super().on_train_start()
        # A GradientAccumulationScheduler sets it when an epoch begins, not when one is resumed (Lightning 2.6).
        self.trainer.accumulate_grad_batches = accumulation(self.trainer, self.current_epoch)
        self.class_weights = loss_weights(self.hparams["class_weights"], self.classes, self.trainer)
        if self.hparams["compile"]:
            # The network and not the module, in place (#20233, #21836): names of weights and self.log stay as they are.
            self.net.compile()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse non-finite weights; become float64 before those are restored, not, as the Trainer does, after it."""
        self.is_new, weights = False, checkpoint["state_dict"]
        if self.hparams["kernels"] == "auto":
            self.use_kernels(checkpoint["hyper_parameters"].get("kernels", "winograd"))
        if name := first_nonfinite((name, weights.get(name)) for name, _ in self.named_parameters()):
            raise UserError(f"the checkpoint is unusable: {name} has non-finite values, because its training diverged")
        if self._trainer is not None and self.trainer.precision == "64-true":
            self.double()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch: the mean cross-entropy, a scalar."""
        images, labels = check_batch(batch, batch_idx)
        logits = self(images)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        loss = mean_cross_entropy(logits, labels, weights, label_smoothing=self.hparams["label_smoothing"])
        if weights is not None:
            loss = loss * share_of_process(labels, weights)
        self._last_batch = loss.detach(), logits.detach(), hard_labels(labels)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients; those of an optimizer step are the mean over its batches, also if it has fewer."""
        factor = mean_factor(self.trainer)
        super().backward(loss if factor == 1 else loss * factor, *args, **kwargs)

    def on_after_backward(self) -> None:
        """Update the metrics after all that may fail: a run that resumes at this batch counts it once."""
        assert self._last_batch is not None
        loss, logits, labels = self._last_batch
        self.train_loss.update(loss, len(labels))
        self.train_accuracy.update(logits, labels)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.last_lr = optimizer.param_groups[0]["lr"]  # the schedule moves on before the epoch is logged

    def on_train_epoch_end(self) -> None:
        log_metrics(self, {"Loss/train": self.train_loss, "Accuracy/train": self.train_accuracy, "lr": self.last_lr})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = check_batch(batch, batch_idx)
        logits = self(images)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.val_accuracy.update(logits, labels)
        self.val_macro.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        with self.val_loss.sync_context():
            self.num_val = int(self.val_loss.num_images)
        means = {"Accuracy/val": self.val_accuracy, "MacroAccuracy/val": self.val_macro}
        log_metrics(self, {"Loss/val": self.val_loss, **means})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions for a batch, with their positions in the test set."""
        images, labels = check_batch(batch, batch_idx)
        logits, mode = self(images), self.hparams["tta"]
        tta = tta_logits(self, to_float(images), mode, plain=logits) if mode != "none" else None
        place = torch.arange(len(labels), device=labels.device) + sum(map(len, self.test_predictions.labels))
        index = place * self.trainer.world_size + self.global_rank  # the processes take the images in turn
        self.test_predictions.update(logits, labels, index, tta)

    def on_test_epoch_end(self) -> None:
        """Compute all test metrics from the collected predictions, and log them."""
        self.predictions = self.test_predictions.predictions(with_tta=self.hparams["tta"] != "none")
        self.test_predictions.reset()
        metrics = self.predictions.metrics(self.classes)
        log_metrics(self, {name: value for name, value in metrics.items() if not name.startswith(REPORT_ONLY)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return a ``torch.optim.SGD``, with a schedule per step unless the learning rate is constant."""
        options = self.hparams
        names = ("lr", "momentum", "weight_decay", "nesterov", "muon_lr", "muon_momentum")
        optimizer = make_optimizer(self.parameters(), **{name: options[name] for name in names})
        if options["schedule"] == "constant" and options["warmup_epochs"] == 0:
            return optimizer
        scheduler = fit_scheduler(self.trainer, optimizer, options["schedule"], options["warmup_epochs"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _check_options(options: dict[str, Any]) -> None:
    check_optimizer_options(options)
    check_image_size(options["image_size"], options["resize"])
    classes, smoothing, mean, std, tta = (options[n] for n in ("classes", "label_smoothing", "mean", "std", "tta"))
    require("classes", classes, len(classes) >= 2, "at least two names")
    require("label_smoothing", smoothing, 0 <= smoothing < 1, "from 0 to below 1")
    require("mean", mean, len(mean) == 3 and all(0 <= value <= 1 for value in mean), "three numbers from 0 to 1")
    require("std", std, len(std) == 3 and all(1e-6 <= value <= 1 for value in std), "three numbers from 1e-6 to 1")
    require("tta", tta, tta in TTA_MODES, f"one of {', '.join(TTA_MODES)}")
