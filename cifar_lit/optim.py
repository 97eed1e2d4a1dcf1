"""Learning-rate schedules as pure functions of the step, and an optimizer that torch lacks."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: Schedule) -> float:
    """Give the factor on the peak learning rate for one optimizer step.

    The warm-up rises in equal parts and reaches the peak with its last step; after it the schedule falls from
    the peak towards zero, which it would reach one step after the last one (so no step is wasted at zero).
    The cosine is the one of SGDR without restarts (arXiv 1608.03983, equation 5).

    Args:
        step: The step that is about to be made, from 0.
        num_steps: Steps of the whole run, at least 1.
        num_warmup_steps: Steps of the warm-up, below ``num_steps``; 0 for none.
        schedule: ``constant`` (stays at the peak), ``linear`` or ``cosine``.

    Returns:
        A factor in [0, 1].
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
    """Bring the singular values of a matrix near to one, by a Newton-Schulz iteration of the fifth order.

    The coefficients are those of Muon (https://kellerjordan.github.io/posts/muon): they give up exactness, with
    singular values that end between about 0.5 and 1.5, for few iterations (three, as airbench94_muon.py makes). Unlike
    there, and in ``torch.optim.Muon``, the products are made in the matrix's own precision: in float32 a CPU is much
    faster than in bfloat16.

    Args:
        matrix: ``(rows, columns)``, float.
        num_steps: How many iterations.

    Returns:
        The same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, muon_lr: float, muon_momentum: float, **options: Any
) -> torch.optim.SGD:
    """Make the optimizer of a training.

    Args:
        parameters: Those of the network; what needs no gradient is left out.
        muon_lr: Learning rate of Muon for the filters of convolutions; 0 for SGD alone.
        muon_momentum: Momentum of Muon.
        options: Those of ``torch.optim.SGD``.

    Returns:
        SGD, or ``Muon`` with one group for the filters.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if muon_lr == 0:
        return torch.optim.SGD(trained, **options)
    filters = [parameter for parameter in trained if parameter.ndim == 4]
    others = [parameter for parameter in trained if parameter.ndim != 4]
    return Muon(filters, others, muon_lr=muon_lr, muon_momentum=muon_momentum, **options)


class Muon(torch.optim.SGD):
    """SGD that makes orthogonal steps with the filters of the convolutions (Muon).

    The momentum of each filter bank, seen as a matrix of ``(outputs, inputs * height * width)``, is orthogonalised
    before the step, and the filters are scaled to a mean square norm of one before that, so their size needs no weight
    decay; both are as in airbench94_muon.py (https://github.com/KellerJordan/cifar10-airbench). All other parameters
    are SGD's.

    Args:
        filters: What is orthogonalised: parameters with two dimensions or more.
        others: What SGD takes.
        muon_lr: Learning rate of the filters, in steps of spectral norm one.
        muon_momentum: Momentum of the filters, in Nesterov's form.
        options: Those of ``torch.optim.SGD``, for the others.
    """

    def __init__(
        self,
        filters: Sequence[Tensor],
        others: Sequence[Tensor],
        *,
        muon_lr: float,
        muon_momentum: float,
        **options: Any,
    ) -> None:
        # To SGD the orthogonal direction is the gradient, without a momentum of its own.
        muon: dict[str, Any] = {"params": filters, "lr": muon_lr, "muon_momentum": muon_momentum}
        muon |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        super().__init__([{"params": others, "muon_momentum": None}, muon], **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; the gradients of the filters are replaced by the directions that they are moved in.

        Args:
            closure: What computes the loss and the gradients again.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon_momentum"] is not None:
                for filters in group["params"]:
                    if filters.grad is not None:
                        self._make_orthogonal(filters, group["muon_momentum"])
        super().step()
        return loss

    def _make_orthogonal(self, filters: Tensor, momentum: float) -> None:
        gradient = cast(Tensor, filters.grad)
        state = self.state[filters]
        if "muon_buffer" not in state:
            state["muon_buffer"] = torch.zeros_like(gradient)
        buffer = state["muon_buffer"]
        buffer.mul_(momentum).add_(gradient)
        direction = gradient.add(buffer, alpha=momentum)
        filters.grad = orthogonalize(direction.flatten(1)).view_as(direction)
        filters.mul_(len(filters) ** 0.5 / filters.norm().clamp_min(1e-7))  # filters may begin as zeros
