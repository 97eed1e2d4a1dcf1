"""Learning-rate schedules as pure functions of the step; Muon for convolution filters."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from cifar_lit.errors import UserError, require

MAX_FLOAT = torch.finfo(torch.float32).max
Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: Schedule) -> float:
    """Return the factor on the peak learning rate, in [0, 1], for one optimizer step, counted from 0.

    The warm-up rises linearly and reaches the peak with its last step. The schedule then stays there, or falls towards
    zero, which it would reach one step after the last, so that no step has a rate of zero. ``cosine`` is that of SGDR
    without restarts (arXiv 1608.03983, equation 5).
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def orthogonalize(matrix: Tensor, *, num_steps: int = 3) -> Tensor:
    """Orthogonalise a matrix ``(rows, columns)`` approximately, by a Newton-Schulz iteration of fifth order.

    The coefficients are those of Muon (https://kellerjordan.github.io/posts/muon): singular values end between about
    0.5 and 1.5 after few iterations (three, as in airbench94_muon.py). Unlike there, and in ``torch.optim.Muon``, the
    products have the matrix's own precision, because on a CPU float32 is much faster than bfloat16.

    A step multiplies by a polynomial of the Gram matrix. These commute, so that three of them are multiplied with each
    other, as small square matrices, before the matrix is multiplied; with more, rounding errors would grow.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for first in range(0, num_steps, 3):
        gram = x @ x.mT
        product = factor = _polynomial(gram)
        for _ in range(first + 1, min(first + 3, num_steps)):
            gram = factor @ gram @ factor
            factor = _polynomial(gram)
            product = factor @ product
        x = torch.mm(product, x)
    return x.mT if tall else x


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    result = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal().add_(a)
    return result


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, muon_lr: float, muon_momentum: float, **options: Any
) -> torch.optim.SGD:
    """Return SGD for the parameters that are not frozen; unless ``muon_lr`` is 0, ``Muon`` with the filters apart.

    A network without filters is warned of: there ``muon_lr`` does nothing.
    """
    parameters = list(parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if muon_lr == 0:
        return torch.optim.SGD(trained, **options)
    if all(parameter.ndim != 4 for parameter in parameters):
        rank_zero_warn(f"muon_lr {muon_lr} does nothing: it is for filters of convolutions, and the network has none")
    filters = [parameter for parameter in trained if parameter.ndim == 4]
    others = [parameter for parameter in trained if parameter.ndim != 4]
    return Muon(filters, others, muon_lr=muon_lr, muon_momentum=muon_momentum, **options)


class Muon(torch.optim.SGD):
    """SGD with orthogonal steps for the filters of convolutions (Muon, https://kellerjordan.github.io/posts/muon).

    The momentum of a filter bank, as a matrix ``(outputs, inputs * height * width)``, is orthogonalised before the
    step. Before that the filters are scaled to a mean squared norm of one, which takes the place of weight decay. Both
    are as in airbench94_muon.py (https://github.com/KellerJordan/cifar10-airbench). ``torch.optim.Muon`` takes only
    2-D parameters, and orthogonalises in bfloat16 (pytorch #166209).

    Args:
        filters: Parameters to orthogonalise, with at least two dimensions.
        others: Parameters of plain SGD.
        muon_lr: Learning rate of the filters; the step has a spectral norm of about one.
        muon_momentum: Nesterov momentum of the filters.
        sgd: Arguments of ``torch.optim.SGD`` for the others.
    """

    def __init__(
        self, filters: Sequence[Tensor], others: Sequence[Tensor], *, muon_lr: float, muon_momentum: float, **sgd: Any
    ) -> None:
        # SGD gets the orthogonal direction as the gradient, without momentum.
        plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        muon: dict[str, Any] = {"params": filters, "lr": muon_lr, "muon_momentum": muon_momentum, **plain}
        super().__init__([{"params": others}, muon], **sgd)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; it replaces the gradients of the filters by their orthogonalised directions."""
        loss = torch.enable_grad()(closure)() if closure else None
        _, muon = self.param_groups
        for filters in muon["params"]:
            if filters.grad is None:
                continue
            state = self.state[filters]
            if "muon_buffer" not in state:
                state["muon_buffer"] = torch.zeros_like(filters.grad)
            buffer = state["muon_buffer"].mul_(muon["muon_momentum"]).add_(filters.grad)
            direction = filters.grad.add(buffer, alpha=muon["muon_momentum"])
            filters.grad = orthogonalize(direction.flatten(1)).view_as(direction)
            filters.mul_(len(filters) ** 0.5 / filters.norm().clamp_min(1e-7))  # filters may be zero
        super().step()
        return loss


def check_optimizer_options(options: Mapping[str, Any]) -> None:
    """Raise a ``UserError`` for an option of ``make_optimizer`` or ``make_scheduler`` that is outside its range."""
    for name in ("momentum", "muon_momentum"):
        require(name, options[name], 0 <= options[name] < 1, "from 0 to below 1")
    require("warmup_epochs", options["warmup_epochs"], 0 <= options["warmup_epochs"] < math.inf, "at least 0")
    for name in ("weight_decay", "muon_lr"):
        require(name, options[name], 0 <= options[name] <= MAX_FLOAT, "at least 0, and a number of float32")
    lr, nesterov, schedule = (options[name] for name in ("lr", "nesterov", "schedule"))
    require("lr", lr, 0 < lr <= MAX_FLOAT, "above 0, and a number of float32")
    require("nesterov", nesterov, not nesterov or options["momentum"] > 0, "false, or used with a `momentum` above 0")
    require("schedule", schedule, schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}")


def _scheduling(trainer: Trainer) -> dict[int, int]:
    """Return how many batches make an optimizer step from which epoch on: ``{0: 4, 10: 1}``, sorted by epoch."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = (one for one in callbacks if isinstance(one, GradientAccumulationScheduler))
    scheduling = next((one.scheduling for one in schedulers), {0: trainer.accumulate_grad_batches})
    return dict(sorted(scheduling.items()))


def accumulation(trainer: Trainer, epoch: int) -> int:
    """Return how many batches make an optimizer step in an epoch."""
    return [factor for first, factor in _scheduling(trainer).items() if first <= epoch][-1]


def count_steps(trainer: Trainer, num_epochs: float) -> float:
    """Return how many optimizer steps the first epochs of a training have; a part of an epoch has a part of a step."""
    num_steps = 0.0
    factors = _scheduling(trainer)
    for first, end in itertools.pairwise([*factors, math.inf]):
        steps_per_epoch = math.ceil(trainer.num_training_batches / factors[int(first)])
        num_steps += steps_per_epoch * max(0.0, min(num_epochs, end) - first)
    return num_steps


def mean_factor(trainer: Trainer) -> float:
    """Return by what to multiply a loss, so that a step has the mean of its batches.

    The Trainer divides each loss by the number of batches of a complete step, also where the last step of an epoch has
    fewer (Lightning 2.6).
    """
    num_batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
    num_left = num_batches % accumulated if math.isfinite(num_batches) else 0
    return accumulated / num_left if num_left and trainer.fit_loop.batch_idx >= num_batches - num_left else 1.0


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, num_steps: int, num_warmup_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler of a training, to be stepped after each optimizer step; arguments as for ``lr_factor``."""
    factor = functools.partial(
        lr_factor, num_steps=num_steps, num_warmup_steps=min(num_steps - 1, num_warmup_steps), schedule=schedule
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def fit_scheduler(
    trainer: Trainer, optimizer: torch.optim.Optimizer, schedule: Schedule, warmup_epochs: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler for the optimizer steps that a Trainer will make; it loads the data to count them."""
    num_steps = trainer.estimated_stepping_batches
    if math.isinf(num_steps) or (warmup_epochs and trainer.max_epochs == -1):
        raise UserError("`schedule` and `warmup_epochs` depend on the length of the training: give `max_epochs`")
    if trainer.max_epochs != -1 and math.isfinite(trainer.num_training_batches):
        # Lightning takes `accumulate_grad_batches` of the first epoch for that of all.
        num_steps = count_steps(trainer, trainer.max_epochs or 1)
        num_steps = num_steps if trainer.max_steps == -1 else min(num_steps, trainer.max_steps)
    num_warmup_steps = count_steps(trainer, warmup_epochs) if warmup_epochs else 0
    return make_scheduler(optimizer, schedule, int(num_steps), round(min(num_steps, num_warmup_steps)))
