"""How a training starts: data-dependent initialisation, weights of another training, what is frozen, the kernels."""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cifar_lit.checkpoint import check_exists, first_nonfinite, load_safetensors, read_saved
from cifar_lit.data.loader import training_images
from cifar_lit.errors import UserError, require
from cifar_lit.networks import Network
from cifar_lit.networks.base import load_once
from cifar_lit.networks.kernels import Choice, check_kernels, choose_kernels, dtype_of, set_kernels
from cifar_lit.networks.winograd import Kernels
from cifar_lit.optim import count_steps
from cifar_lit.prediction import Predictor
from cifar_lit.schema import check_tensors

Freeze = Literal["none", "body"]
FEWER = "fewer than the training has (`max_epochs`, `max_steps`); `freeze` body trains the head alone"
"""Epochs in which the body is frozen."""


class FineTuning(Predictor):
    """How the training of an ``ImageClassifier`` starts.

    Attributes:
        std: Standard deviation of each colour channel.
        is_new: Whether the weights are the initial ones; a training then starts with all of the above.
        body: The parameters that are frozen, at first or for good.
        resting: The parameters that the network does not train in this epoch.
    """

    std: Tensor
    is_new: bool = True
    body: Sequence[nn.Parameter] = ()
    resting: Sequence[nn.Parameter] = ()

    def start_from(self, weights: str | None, freeze: Freeze, freeze_epochs: int) -> None:
        """Check the options of the start, and note the body if it is frozen."""
        require("freeze", freeze, freeze in get_args(Freeze), f"one of {', '.join(get_args(Freeze))}")
        require("freeze_epochs", freeze_epochs, freeze_epochs >= 0, "at least 0")
        require("freeze_epochs", freeze_epochs, freeze == "none" or freeze_epochs == 0, "0 beside a `freeze` of body")
        options = self.hparams["net"]["init_args"]
        if freeze == "none" and freeze_epochs == 0:
            return
        if not (weights or options.get("weights") or options.get("pretrained")):
            what = "`freeze` is body" if freeze == "body" else f"`freeze_epochs` is {freeze_epochs}"
            raise UserError(f"{what}, and the body would have random weights: give `weights` to start from")
        head = {id(parameter) for parameter in head_of(self.net, len(self.classes)).parameters()}
        self.body = [one for one in self.net.parameters() if one.requires_grad and id(one) not in head]
        if freeze == "body":  # before the optimizer and DistributedDataParallel take what is trained
            _train(self.body, False)

    @property
    def started_from(self) -> str | None:
        """The name of the weights that the training started from: of a path the file, of a run's its folder, too."""
        of_net = self.hparams["net"]["init_args"].get("weights")
        if given := self.hparams["weights"] or (of_net if isinstance(of_net, str) else None):
            return "/".join(Path(given).parts[-3 if Path(given).parent.name == "checkpoints" else -1 :])
        return None

    def use_kernels(self, kernels: Kernels) -> None:
        """Take these kernels for the convolutions, and note them as the option's value."""
        check_kernels(kernels)
        set_kernels(self.net, kernels)
        self.save_hyperparameters({"kernels": kernels})

    def _settle_kernels(self) -> None:
        """Choose the kernels if they are auto, in the first process, whose choice is that of all."""
        trainer, kernels = self.trainer, self.hparams["kernels"]
        if kernels == "auto" and trainer.is_global_zero:
            data, device = getattr(getattr(trainer, "datamodule", None), "hparams", {}), trainer.strategy.root_device
            sizes, batch_size = data.get("image_sizes") or [self.image_size], data.get("batch_size", 64)
            kernels, _ = self.choose_kernels(sizes, batch_size, trainer.precision, on_cpu=device.type == "cpu")
        kernels, precision = trainer.strategy.broadcast((kernels, trainer.precision))
        require("precision", trainer.precision, trainer.precision == precision, f"{precision}, as in the first process")
        self.use_kernels(kernels)

    def choose_kernels(self, sizes: Sequence[int], batch_size: int, precision: Any, *, on_cpu: bool) -> Choice:
        """Return the kernels for a training, without a choice torch's own, and whether they are as measured."""
        dtype = dtype_of(precision) if on_cpu and not self.hparams["compile"] else None
        return choose_kernels(self.net, sizes, batch_size, dtype) if dtype else ("direct", True)

    def setup(self, stage: str) -> None:
        """Check the network, and show some training images to a new one with data-dependent initialisation."""
        self.check_network()
        self.wake()  # the optimizer takes what is trained in any epoch, also after an earlier training
        if stage != "fit" or not self.is_new or not isinstance(self.net, Network):
            return
        if type(self.net).prepare is not Network.prepare:
            with torch.no_grad():
                mean, std = self.mean.cpu(), self.get_buffer("std").cpu()
                self.net.prepare((training_images(self.trainer) - mean) / std)

    def on_fit_start(self) -> None:
        """Load the weights that a new network starts from; one of a checkpoint, or of an earlier training, has some."""
        self._settle_kernels()
        wrapped = self.trainer.strategy.model
        if self.hparams["freeze_epochs"] and isinstance(wrapped, DistributedDataParallel):
            expected = "ddp_find_unused_parameters_true, because `freeze_epochs` changes what is trained"
            require("strategy", type(self.trainer.strategy).__name__, wrapped.find_unused_parameters, expected)
        if self.is_new and not self.trainer.ckpt_path:
            if isinstance(self.net, Network):
                load_once(self.net, self.trainer)
                if self.hparams["weights"] is None:
                    _check_body(self, self.net.initialised, "the network's weights have")
            if (weights := self.hparams["weights"]) is not None:
                rank_zero_info(load_matching(self, Path(weights)))
        self.is_new = False

    def on_train_start(self) -> None:
        """Say what is frozen; for some epochs, the training must have more."""
        self.freeze_body()
        num_epochs, trainer = self.hparams["freeze_epochs"], self.trainer
        if num_epochs and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            is_all = 0 <= (trainer.max_epochs or -1) <= num_epochs
            if trainer.max_steps >= 0 and math.isfinite(trainer.num_training_batches):
                is_all |= trainer.max_steps <= count_steps(trainer, num_epochs)
            require("freeze_epochs", num_epochs, not is_all, FEWER)
        if self.body and not self.body[-1].requires_grad:
            trained = ", ".join(name for name, parameter in self.net.named_parameters() if parameter.requires_grad)
            rank_zero_info(f"frozen{f' until epoch {num_epochs} ends' * bool(num_epochs)}: all but {trained}")

    def on_train_epoch_start(self) -> None:
        """Freeze the body, or train all from here on."""
        self.freeze_body()

    def freeze_body(self) -> None:
        """Do what the epoch needs, also where a run resumes within it; the statistics of BatchNorm are frozen, too."""
        if self.body:
            is_frozen = self.hparams["freeze"] == "body" or self.current_epoch < self.hparams["freeze_epochs"]
            _train(self.body, not is_frozen)
            self.net.train(not is_frozen)
        self.wake()
        if isinstance(self.net, Network):
            self.resting = [one for one in self.net.untrained(self.current_epoch) if one.requires_grad]
        # What wraps the model, as DDP, waits for all gradients; what is compiled would be compiled again.
        if self.resting and self.trainer.strategy.model is self and not self.hparams["compile"]:
            _train(self.resting, False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out what rests and has a gradient all the same."""
        for parameter in self.resting:
            parameter.grad = None

    def wake(self) -> None:
        """End the rest of what rests."""
        _train(self.resting, True)
        self.resting = ()

    on_train_end = wake


def _train(parameters: Sequence[nn.Parameter], is_trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(is_trained)


def head_of(net: nn.Module, num_classes: int) -> nn.Module:
    """Return the last linear layer or convolution, in order of definition, that has an output for each class."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if heads := [layer for layer in layers if len(layer.weight) == num_classes]:
        return heads[-1]
    raise UserError(f"`freeze`: {type(net).__name__} has no linear layer with {num_classes} outputs, which is its head")


def load_matching(model: FineTuning, path: Path) -> str:
    """Load the tensors of a file that have the name and shape of one of the network's, and return what was done.

    Names may lack, or have, a prefix that is common to all of them, as ``model.`` or ``module.``.
    It is a ``UserError`` if they are less than half of the parameters, or non-finite where the network's are finite.
    """
    saved = read_weights(path)
    is_ours = {"mean", "std"} <= saved.keys()  # with the normalisation beside the network
    saved_net = {name[4:]: part for name, part in saved.items() if name.startswith("net.")} if is_ours else saved
    own = {name: part for name, part in model.net.state_dict().items() if isinstance(part, Tensor)}
    cuts = itertools.product(_prefixes(own), _prefixes(saved_net))
    found = max((_same(own, saved_net, *cut) for cut in cuts), key=len)
    sizes = {name: parameter.numel() for name, parameter in model.net.named_parameters()}
    share = sum(sizes.get(name, 0) for name in found) / max(1, sum(sizes.values()))
    counts = f"{len(found)} of {len(own)} tensors, {int(100 * share)} % of the parameters"
    if share < 0.5:
        raise UserError(
            f"`weights` is {path}, of another network ({', '.join(list(saved_net)[:2]):.100}, ...): {counts} of "
            f"{type(model.net).__name__} have their name and shape there: must be at least half; give "
            "the `net` or `recipe` of their training"
        )
    checked = ((name, part) for name, part in found.items() if not first_nonfinite([("it", own[name])]))
    if name := first_nonfinite(checked):
        raise UserError(f"`weights` is {path}, and its {name} has non-finite values: give those of another training")
    model.net.load_state_dict(found, strict=False)
    others = [name for name in own if name not in found]
    _check_body(model, others, f"`weights` {path} has")
    text = f"weights of {path}: {counts}" + (f"; initialised: {', '.join(others[:3])}" if others else "")
    text += f" and {len(others) - 3} more" if len(others) > 3 else ""
    for name in ("mean", "std") if is_ours else ():
        then, now = ([round(x, 4) for x in part.flatten().tolist()] for part in (saved[name], getattr(model, name)))
        text += f"; their training had {name} {then}, and this one has {now}" if then != now else ""
    return text


def _prefixes(names: Iterable[str]) -> tuple[int, int]:
    """Return how many characters of names may be cut off: none, or the part that all of them begin with."""
    first, *others = {name.partition(".")[0] for name in names} or {""}
    return 0, 0 if others else len(first) + 1


def _same(own: dict[str, Tensor], saved: dict[str, Tensor], own_cut: int, cut: int) -> dict[str, Tensor]:
    """Return those tensors of a file that have the name, behind what is cut off, and form of one of the network's."""
    parts = {name[cut:]: part for name, part in saved.items()}
    found = {name: parts[name[own_cut:]] for name in own if name[own_cut:] in parts}
    return {
        name: part
        for name, part in found.items()
        if part.shape == own[name].shape and part.is_floating_point() == own[name].is_floating_point()
    }


def _check_body(model: FineTuning, initialised: Collection[str], origin: str) -> None:
    """Refuse to freeze for good what was initialised at random."""
    frozen = {id(parameter) for parameter in model.body} if model.hparams["freeze"] == "body" else set()
    for name, parameter in model.net.named_parameters():
        if name in initialised and id(parameter) in frozen:
            problem = f"`freeze` is body, and {origin} no {name} that fits, which would stay random"
            raise UserError(f"{problem}: give `freeze_epochs` instead")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, an export or a file of a ``state_dict``, without running code in it."""
    try:
        check_exists(path)
        saved = load_safetensors(path) if path.suffix == ".safetensors" else read_saved(path)
        check_tensors(saved)
    except ValueError as error:  # a UserError is one, too
        raise UserError(f"`weights`: {error}") from error
    weights = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    items = weights.items() if isinstance(weights, dict) else ()
    tensors = {str(name): part for name, part in items if isinstance(part, Tensor)}
    if not tensors:
        raise UserError(f"`weights` is {path}, which has no weights: must hold tensors by name, as a state_dict does")
    return tensors
