"""The schedules, by tables of values; the optimizer, against its formula."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_lit.optim import Muon, Schedule, lr_factor, make_optimizer, make_scheduler, orthogonalize


@pytest.mark.parametrize(
    ("schedule", "num_warmup_steps", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 2, [0.5, 1, 1, 0.853553390593, 0.5, 0.146446609407]),
        ("cosine", 5, [0.2, 0.4, 0.6, 0.8, 1, 1]),
    ],
)
def test_a_schedule_takes_these_values(schedule: Schedule, num_warmup_steps: int, expected: list[float]) -> None:
    factors = [lr_factor(step, num_steps=6, num_warmup_steps=num_warmup_steps, schedule=schedule) for step in range(6)]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_step_beyond_the_last_has_the_factor_zero(schedule: Schedule) -> None:
    # The Trainer asks once more after the last step.
    for step in (10, 11, 20):
        assert lr_factor(step, num_steps=10, num_warmup_steps=3, schedule=schedule) == pytest.approx(0)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (6, 6)])
def test_orthogonalizing_brings_the_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, num_steps=8)
    inner = u.mT @ result @ v.mT
    assert torch.allclose(inner, torch.diag(torch.diag(inner)), atol=1e-6)
    assert bool(((torch.diag(inner) > 0.6) & (torch.diag(inner) < 1.3)).all())
    assert orthogonalize(matrix.float()).dtype == torch.float32


def iterate(matrix: Tensor, num_steps: int) -> Tensor:
    """Orthogonalise a wide matrix as Muon is written: each step multiplies the matrix itself."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return Tensor(x)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(24, 216), (64, 64), (48, 40)])
def test_products_of_small_matrices_come_to_the_same(shape: tuple[int, int], num_steps: int) -> None:
    generator = torch.Generator().manual_seed(num_steps)
    matrix = torch.randn(shape, generator=generator) * torch.logspace(0, -3, shape[1])  # badly conditioned
    before = matrix.clone()
    expected = iterate(matrix.mT, num_steps).mT if shape[0] > shape[1] else iterate(matrix, num_steps)
    assert torch.allclose(orthogonalize(matrix, num_steps=num_steps), expected, atol=1e-5)
    assert torch.equal(matrix, before)


def test_the_filters_of_fast_take_half_of_the_products() -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.zeros(256, 2304, device="meta"))
    old = 3 * 2 * (2 * 256**2 * 2304 + 256**3)
    assert counter.get_total_flops() < 0.5 * old


def test_muon_is_its_formula_for_filters_and_sgd_for_the_rest() -> None:
    generator = torch.Generator().manual_seed(1)
    filters, bias = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, generator=generator)
    ours = [filters.clone().requires_grad_(), bias.clone().requires_grad_()]
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}
    optimizer = Muon([ours[0]], [ours[1]], muon_lr=0.3, muon_momentum=0.6, **options)
    theirs = bias.clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], **options)
    buffer = torch.zeros_like(filters)
    for _ in range(3):
        gradients = [torch.randn(part.shape, generator=generator) for part in ours]
        for part, gradient in zip([*ours, theirs], [*gradients, gradients[1]], strict=True):
            part.grad = gradient.clone()
        optimizer.step()
        sgd.step()
        buffer = 0.6 * buffer + gradients[0]
        direction = orthogonalize((gradients[0] + 0.6 * buffer).view(4, 27)).view_as(filters)
        filters = filters * (4**0.5 / filters.norm()) - 0.3 * direction
        assert torch.allclose(ours[0], filters, atol=1e-6)
        assert torch.equal(ours[1], theirs)


def test_a_network_without_filters_is_warned_of() -> None:
    options = {"muon_lr": 0.2, "muon_momentum": 0.6, "lr": 0.1}
    with pytest.warns(UserWarning, match=r"muon_lr 0.2 does nothing: it is for filters of convolutions"):
        make_optimizer(nn.Linear(2, 2).parameters(), **options)
    frozen = nn.Conv2d(2, 2, 3).requires_grad_(False)
    make_optimizer([*frozen.parameters(), *nn.Linear(2, 2).parameters()], **options)


def test_muon_resumes_from_its_state() -> None:
    def fresh() -> tuple[list[Tensor], Muon]:
        generator = torch.Generator().manual_seed(2)
        parts = [torch.randn(5, 2, 3, 3, generator=generator), torch.randn(5, generator=generator)]
        parts = [part.requires_grad_() for part in parts]
        return parts, Muon(parts[:1], parts[1:], muon_lr=0.2, muon_momentum=0.9, lr=0.1, momentum=0.9)

    def step(parts: list[Tensor], optimizer: Muon, seed: int) -> None:
        for part in parts:
            part.grad = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    whole, optimizer = fresh()
    step(whole, optimizer, 0)
    state = copy.deepcopy(optimizer.state_dict())
    saved = [part.detach().clone() for part in whole]
    step(whole, optimizer, 1)
    resumed, optimizer = fresh()
    for part, value in zip(resumed, saved, strict=True):
        part.data.copy_(value)
    optimizer.load_state_dict(state)
    step(resumed, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_muon_moves_filters_that_begin_as_zeros() -> None:
    filters = torch.zeros(4, 3, 3, 3, requires_grad=True)
    filters.grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([filters], [], muon_lr=0.1, muon_momentum=0.5, lr=0.1).step()
    assert bool(filters.isfinite().all())
    assert float(filters.detach().norm()) > 0.05


def test_muon_evaluates_a_closure_with_gradients() -> None:
    weight, bias = torch.ones(1, 2, 1, 1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = Muon([weight], [bias], muon_lr=0.1, muon_momentum=0.0, lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.sum() + bias.sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert float(bias.detach()) == 0.5


def test_muon_is_for_filters_and_frozen_parameters_are_left_out() -> None:
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((4, 3, 3, 3), (4, 12), (4,))]
    frozen = nn.Parameter(torch.ones(4, 3, 1, 1), requires_grad=False)
    sgd = make_optimizer([*weights, frozen], muon_lr=0, muon_momentum=0.6, lr=0.1)
    assert type(sgd) is torch.optim.SGD
    muon = make_optimizer([*weights, frozen], muon_lr=0.3, muon_momentum=0.6, lr=0.1)
    assert isinstance(muon, Muon)
    for optimizer, expected in ((sgd, [(weights, 0.1)]), (muon, [(weights[1:], 0.1), (weights[:1], 0.3)])):
        for group, (parameters, lr) in zip(optimizer.param_groups, expected, strict=True):
            assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in parameters}
            assert group["lr"] == lr


@pytest.mark.parametrize(
    ("num_warmup_steps", "expected"), [(2, [0.5, 1, 1, 0.5]), (9, [1 / 3, 2 / 3, 1, 1])], ids=["short", "too long"]
)
def test_a_scheduler_multiplies_the_rate_of_each_group(num_warmup_steps: int, expected: list[float]) -> None:
    weights = [nn.Parameter(torch.ones(2, 2, 1, 1)), nn.Parameter(torch.ones(2))]
    optimizer = make_optimizer(weights, muon_lr=0.4, muon_momentum=0.6, lr=0.2)
    scheduler = make_scheduler(optimizer, "linear", num_steps=4, num_warmup_steps=num_warmup_steps)
    for factor in expected:
        assert scheduler.get_last_lr() == pytest.approx([0.2 * factor, 0.4 * factor])
        optimizer.step()
        scheduler.step()
