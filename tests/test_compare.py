"""The comparison of runs: its test against tables, its figures against those of single runs."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_lit.cli import main
from cifar_lit.compare import Scored, format_comparison, holm, mcnemar, paired_difference
from tests.conftest import FEW_EPOCHS, RUN

Refused = Callable[[list[str]], tuple[int, str]]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 6, 2 / 64),
        (1, 9, 2 * 11 / 1024),
        (9, 1, 2 * 11 / 1024),
        (59, 121, 4.434e-06),  # R: binom.test(59, 180)
        (1022, 265, 4.5e-105),
    ],
)
def test_mcnemars_p_is_that_of_the_binomial_test(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-2)


def scored(name: str, right: str, **options: object) -> Scored:
    is_right = torch.tensor([letter == "+" for letter in right])
    given = {"recipe": "tuned", "seed": 0, "settings": {"lr": 0.1}, **options}
    return Scored(name=name, labels=torch.arange(len(right)), right=is_right, **given)  # type: ignore[arg-type]


def test_the_table() -> None:
    runs = [
        scored("a", "++++++----"),
        scored("b", "++++++++--", seed=1),
        scored("c" * 60, "---+++++++", settings={"lr": 0.2}),
        scored("d", "+-", recipe="fast"),
    ]
    table = format_comparison(runs)
    assert all(len(line) <= 80 for line in table.splitlines())
    lines = [line.split() for line in table.splitlines()]
    assert ["a", "tuned", "0", "0.6000"] in [line[:4] for line in lines]
    assert ["tuned,", "lr", "0.1", "2", "2", "0.7000", f"{statistics.stdev([0.6, 0.8]):.4f}"] in lines
    assert ["tuned,", "lr", "0.2", "1", "1", "0.7000", "-"] in lines
    assert ["fast", "1", "1", "0.5000", "-"] in lines
    assert ["b", "0", "2", "+0.2000±0.2479", "1"] in lines
    assert ["..." + "c" * 26, "3", "4", "+0.1000±0.5148", "1"] in lines
    assert ["d", "other", "test", "images"] in lines


def test_holm_is_that_of_a_table() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 400, generator=generator)
    only_first, only_second = (draws < 0.1).sum(1), ((draws >= 0.1) & (draws < 0.25)).sum(1)
    held = 0
    for first, second in zip(only_first.tolist(), only_second.tolist(), strict=True):
        difference, half = paired_difference(first, second, 400)
        held += abs(difference - 0.05) <= half
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_runs_are_compared(run: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "4"])
    main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.gradient_clip_val", "1"])
    accuracies = [
        json.loads(Path(f"lightning_logs/version_{number}/results.json").read_text())["Accuracy/test"]
        for number in (0, 1)
    ]
    capsys.readouterr()
    Path("tiny").rename("elsewhere")
    checkpoint = "lightning_logs/version_1/checkpoints/best.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["test", str(RUN), checkpoint, "lightning_logs/version_2", "--data.root", "elsewhere"])
    assert stopped.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [float(line[3]) for line in lines if line[1:2] == ["tutorial"] and len(line) == 5][:2]
    assert shown == pytest.approx(accuracies, abs=1e-4)
    assert [line[2] for line in lines if line[1:2] == ["tutorial"] and len(line) == 5] == ["3", "4", "0"]
    (group,) = [line[3:] for line in lines if line[:5] == ["tutorial,", "gradient_clip_val", "None", "2", "2"]]
    assert any(line[:4] == ["tutorial,", "gradient_clip_val", "1", "1"] for line in lines)
    assert float(group[2]) == pytest.approx(statistics.mean(accuracies), abs=1e-4)


def test_what_cannot_be_compared_is_named(run: str, refused: Refused) -> None:
    shutil.copytree("tiny", "other")
    for split in ("train", "test"):
        Path(f"other/{split}/dark").rename(f"other/{split}/night")
    for args, expected in (
        ([str(RUN), "nothing"], "nothing is neither a checkpoint nor a run's folder"),
        ([str(RUN), f"{RUN}/checkpoints/best.ckpt"], "is given twice: name each run once"),
        (
            [str(RUN), f"{RUN}/checkpoints/last.ckpt", "--data.root", "other"],
            "was trained for other classes than the data in other has",
        ),
        ([str(RUN), "x", "--report"], "unrecognized arguments: --report"),
    ):
        code, line = refused(["test", *args])
        assert code == 2
        assert expected in line
