"""The schedules, by tables of values."""

import pytest

from cifar_lit.optim import Schedule, lr_factor


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
