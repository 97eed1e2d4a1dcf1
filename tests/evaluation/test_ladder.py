"""The table and the plot of the ladder."""

import io
from typing import Any

import pytest
from PIL import Image

from cifar_lit.evaluation import ladder
from cifar_lit.evaluation.ladder import (
    Step,
    differences,
    format_ladder,
    format_tests,
    in_percent,
    markdown_ladder,
    plot_ladder,
)


def step(number: int, title: str, *accuracies: float | None) -> Step:
    rows = [
        {"seed": seed, "accuracy": accuracy, "seconds": 10.0 + seed, "multiplications": 2.5e12}
        if accuracy is not None
        else {"seed": seed, "accuracy": None}
        for seed, accuracy in enumerate(accuracies)
    ]
    return Step.of(number, title, rows, [])


STEPS = [
    step(0, "First", 0.5, 0.54, 0.52),
    step(1, "Second", 0.6, 0.65, None),
    step(4, "Third", 0.59, 0.62, 0.7),
    step(5, "Lost", None, None),
]


def test_the_table() -> None:
    lines = format_ladder(STEPS).splitlines()
    assert lines[0].split() == ["step", "accuracy", "difference", "seconds", "10^12", "multiplications"]
    assert lines[1].split() == ["0", "First", "52.00", "±", "4.97", "11", "2.5"]
    assert lines[2].split() == [
        "1",
        "Second",
        "(1",
        "diverged)",
        "62.50",
        "±",
        "31.77",
        "+10.50",
        "±",
        "6.35",
        "10",
        "2.5",
    ]
    assert lines[4].split() == ["5", "Lost", "(2", "diverged)"]
    assert all(len(line) < 100 for line in lines)
    table = markdown_ladder(STEPS, ["a note"])
    assert table.splitlines()[3] == "| 1 | Second (1 diverged) | 62.50 ± 31.77 | +10.50 ± 6.35 | 10 | 2.5 |"
    assert table.endswith("|\n\na note\n")


def test_what_was_not_counted_is_left_out() -> None:
    rows = [{"seed": 0, "accuracy": 0.5, "seconds": 10.0, "multiplications": None}]
    steps = [Step.of(0, "Own", rows, [])]
    assert format_ladder(steps).splitlines()[1].split() == ["0", "Own", "50.00", "10"]
    assert plot_ladder(steps, title="a title")


def test_the_plot_has_the_differences_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(ladder, "_plot_accuracies", lambda _axes, _steps, gains: shown.extend(gains))
    steps = [step(0, "First", 0.5, 0.52), step(1, "Lost", None, None), step(2, "Third", 0.6, 0.65)]
    plot_ladder(steps, title="a title")
    assert [in_percent(gain) for gain in shown] == ["", ""]  # the step before the third has no accuracy
    assert [row[3] for row in ladder.cells(steps)] == ["", "", ""]


def test_differences_are_those_of_equal_seeds() -> None:
    first, second, third, lost = differences(STEPS)
    assert first is None
    assert second is not None
    assert third is not None
    assert lost is not None
    assert round(third.mean, 6) == -0.02  # of the seeds 0 and 1
    assert lost.mean != lost.mean  # NaN


def test_the_tests_have_a_line_each() -> None:
    tested = Step.of(3, "Tested", [], [{"seed": 0, "accuracy": 0.9}, {"seed": 1, "accuracy": 0.92}])
    assert format_tests([*STEPS, tested]) == ["step 3 on the test images: 91.00 ± 12.71 % (2 seeds)"]


def test_the_plot_is_a_picture_whatever_is_missing() -> None:
    for steps in (STEPS, STEPS[:1], [step(0, "One seed", 0.5)]):
        with Image.open(io.BytesIO(plot_ladder(steps, title="a title"))) as image:
            assert image.format == "PNG"
            assert image.width == 1500
