"""Means over seeds and differences between pairs of runs, with the 95 % intervals of Student's t distribution."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean, and half the width of its 95 % interval: NaN where there is one value only."""

    mean: float
    half_width: float


def mean_interval(values: Sequence[float]) -> Estimate:
    """Estimate the mean of a quantity from independent values, such as the accuracies of several seeds."""
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), t_quantile(len(values) - 1) * error)


def paired_interval(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """Estimate the mean difference, second minus first, of values that belong together by their keys, such as seeds.

    What a seed does to both cancels in the difference. A key that only one of them has is left out.
    """
    return mean_interval([second[key] - first[key] for key in first if key in second])


def t_quantile(degrees_of_freedom: int, inside: float = 0.95) -> float:
    """Return the t between whose negative and itself lies a share of Student's t distribution.

    The share has a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), in an angle that
    is found by bisection: ``t = sqrt(degrees_of_freedom) * tan(angle)``.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_inside(middle, degrees_of_freedom) < inside else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(low)


def _share_inside(angle: float, degrees_of_freedom: int) -> float:
    power = degrees_of_freedom % 2
    term, total = math.cos(angle) ** power, 0.0
    while power <= degrees_of_freedom - 2:
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
        power += 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if degrees_of_freedom % 2 else math.sin(angle) * total
