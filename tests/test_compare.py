"""The comparison of runs: its test against tables, its figures against those of single runs."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_lit.cli import main
from cifar_lit.compare import Scored, format_comparison, mcnemar
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
    assert ["tuned,", "lr", "0.1", "2", "0.7000", f"{statistics.stdev([0.6, 0.8]):.4f}"] in lines
    assert ["tuned,", "lr", "0.2", "1", "0.7000", "-"] in lines
    assert ["fast", "1", "0.5000", "-"] in lines
    assert ["b", "0", "2", "0.5"] in lines
    assert ["..." + "c" * 31, "3", "4", "1"] in lines
    assert ["d", "other", "test", "images"] in lines


def test_runs_are_compared(run: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "4"])
    accuracies = [
        json.loads(Path(f"lightning_logs/version_{number}/results.json").read_text())["Accuracy/test"]
        for number in (0, 1)
    ]
    capsys.readouterr()
    Path("tiny").rename("elsewhere")
    checkpoint = "lightning_logs/version_1/checkpoints/best.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["test", str(RUN), checkpoint, "--data.root", "elsewhere"])
    assert stopped.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [float(line[3]) for line in lines if line[1:2] == ["tutorial"] and len(line) == 5]
    assert shown == pytest.approx(accuracies, abs=1e-4)
    assert [line[2] for line in lines if line[1:2] == ["tutorial"] and len(line) == 5] == ["3", "4"]
    (group,) = [line for line in lines if line[0:2] == ["tutorial", "2"]]
    assert float(group[2]) == pytest.approx(statistics.mean(accuracies), abs=1e-4)


def test_what_cannot_be_compared_is_named(run: str, refused: Refused) -> None:
    shutil.copytree("tiny", "other")
    for split in ("train", "test"):
        Path(f"other/{split}/dark").rename(f"other/{split}/night")
    for args, expected in (
        ([str(RUN), "nothing"], "nothing is neither a checkpoint nor a run's folder"),
        ([str(RUN), str(RUN), "--data.root", "other"], "was trained for other classes than the data in other has"),
        ([str(RUN), str(RUN), "--report"], "unrecognized arguments: --report"),
    ):
        code, line = refused(["test", *args])
        assert code == 2
        assert expected in line
