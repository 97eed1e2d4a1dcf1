"""Intervals of means and of differences between pairs, beside scipy's."""

import math

import pytest

from cifar_lit.evaluation.paired import mean_interval, paired_interval, t_quantile

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 5, 9, 30, 201])
@pytest.mark.parametrize("inside", [0.5, 0.95, 0.999])
def test_the_quantile_is_that_of_scipy(degrees_of_freedom: int, inside: float) -> None:
    expected = stats.t.ppf((1 + inside) / 2, degrees_of_freedom)
    assert t_quantile(degrees_of_freedom, inside) == pytest.approx(expected, rel=1e-9)


def test_the_intervals_are_those_of_scipy() -> None:
    first, second = [0.61, 0.64, 0.60, 0.66, 0.62], [0.63, 0.65, 0.63, 0.67, 0.66]
    low, high = stats.t.interval(0.95, 4, loc=sum(first) / 5, scale=stats.sem(first))
    estimate = mean_interval(first)
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    paired = paired_interval(dict(enumerate(first)), dict(enumerate(second)))
    assert (paired.mean - paired.half_width, paired.mean + paired.half_width) == pytest.approx(interval)


def test_only_pairs_count() -> None:
    assert paired_interval({0: 0.5, 1: 0.6, 7: 0.9}, {1: 0.7, 0: 0.5, 3: 0.1}).mean == pytest.approx(0.05)
    mean, half_width = paired_interval({0: 0.5}, {0: 0.6})
    assert mean == pytest.approx(0.1)
    assert math.isnan(half_width)
    assert all(map(math.isnan, paired_interval({0: 0.5}, {1: 0.6})))
