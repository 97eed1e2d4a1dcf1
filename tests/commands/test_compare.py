"""The comparison of runs: its tables, and its accuracies against those of the single runs."""

import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit import ImageClassifier
from cifar_lit import Run as SavedRun
from cifar_lit.commands.compare import Scored, format_comparison
from cifar_lit.main import main
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results


def scored(name: str, correct: str, **options: object) -> Scored:
    is_correct = torch.tensor([letter == "+" for letter in correct])
    given = {"recipe": "tuned", "seed": 0, "settings": {"lr": 0.1}, **options}
    return Scored(name=name, labels=torch.arange(len(correct)), correct=is_correct, **given)  # type: ignore[arg-type]


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


def test_runs_of_one_seed_have_no_spread_over_seeds() -> None:
    lines = [line.split() for line in format_comparison([scored("a", "++-"), scored("b", "++-")]).splitlines()]
    assert ["tuned", "2", "1", "0.6667", "-"] in lines


def test_a_group_is_shown_by_complete_words() -> None:
    settings = [{"net": name, "limit_train_batches": number, "lr": 0.1} for name, number in (("A", 30), ("B", 4))]
    runs = [scored(str(i), "+-", settings=each) for i, each in enumerate(settings)]
    lines = format_comparison(runs).splitlines()
    assert [line.split()[0:5] for line in lines if line.startswith("tuned")] == [
        ["tuned,", "net", "A,", "...", "1"],
        ["tuned,", "net", "B,", "...", "1"],
    ]
    long = [scored(str(i), "+-", settings={"net.widths": [i] * 30}) for i in range(2)]
    assert all(len(line) <= 80 for line in format_comparison(long).splitlines())


def test_a_probability_that_is_too_small_for_a_float_is_not_zero() -> None:
    table = format_comparison([scored("a", "+" * 2000), scored("b", "-" * 2000)])
    assert table.splitlines()[-1].split() == ["b", "2,000", "0", "-1.0000±0.0000", "<1e-300"]


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_each_run_is_scored_in_its_own_precision(
    tiny_args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = ("bf16-mixed", "32-true", "bf16-true", "64-true")
    paths = [f"lightning_logs/version_{number}" for number in range(len(precisions))]
    for precision in precisions:
        assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.precision", precision]) == 0
    monkeypatch.setattr("cifar_lit.machine.has_fast_bfloat16", lambda: True)
    used, predict = [], ImageClassifier.predict

    def noting(model: ImageClassifier, *args: Any, **options: Any) -> torch.Tensor:
        used.append((next(model.net.parameters()).dtype, torch.is_autocast_enabled("cpu")))
        return predict(model, *args, **options)

    monkeypatch.setattr(ImageClassifier, "predict", noting)
    assert main(["fit", *tiny_args, *FEW_EPOCHS]) == 0
    capsys.readouterr()
    assert main(["compare", *paths, "lightning_logs/version_4"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tutorial,", "precision", "32-true", "2"] in [line[:4] for line in lines]
    for path in paths:
        accuracy = read_results(Path(path))["Accuracy/test"]
        assert [path, "tutorial", "0", f"{accuracy:.4f}"] in [line[:4] for line in lines]
    assert used == [
        (torch.float32, True),
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float64, False),
        (torch.float32, False),
    ]


def test_runs_are_compared(run: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "4"])
    main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.gradient_clip_val", "1"])
    accuracies = [read_results(Path(f"lightning_logs/version_{number}"))["Accuracy/test"] for number in (0, 1)]
    capsys.readouterr()
    Path("tiny").rename("elsewhere")
    runs = [str(RUN), "lightning_logs/version_1/checkpoints/best.ckpt", "lightning_logs/version_2"]
    assert main(["compare", *runs, "--data.root", "elsewhere"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    shown = [float(line[3]) for line in lines if line[1:2] == ["tutorial"] and len(line) == 5][:2]
    assert shown == pytest.approx(accuracies, abs=1e-4)
    assert [line[2] for line in lines if line[1:2] == ["tutorial"] and len(line) == 5] == ["3", "4", "0"]
    (group,) = [line[3:] for line in lines if line[:5] == ["tutorial,", "gradient_clip_val", "None", "2", "2"]]
    assert any(line[:4] == ["tutorial,", "gradient_clip_val", "1", "1"] for line in lines)
    assert float(group[2]) == pytest.approx(statistics.mean(accuracies), abs=1e-4)
    assert main(["test", *runs, "--data.root", "elsewhere"]) == 0  # the same by its other name
    assert capsys.readouterr().out == out
    Path("died\x1b[2J/checkpoints").mkdir(parents=True)  # a run without a checkpoint ends no comparison
    shutil.copy(RUN / "checkpoints/best.ckpt", "damaged.ckpt")
    with Path("damaged.ckpt").open("r+b") as file:
        file.truncate(1000)
    assert main(["test", *runs, "died\x1b[2J", "damaged.ckpt", "--data.root", "elsewhere"]) == 1
    printed = capsys.readouterr()
    assert printed.out == out
    first, second = [line for line in printed.err.splitlines() if line.startswith("error")]
    assert first.startswith(r"error: died\x1b[2J is left out: died\x1b[2J is neither a run's folder")
    assert second.startswith("error: damaged.ckpt is left out: damaged.ckpt is ")
    assert main(["test", *runs, "--data.root", "elsewhere", "--model.tta", "mirror"]) == 0
    assert capsys.readouterr().out.startswith("with test-time augmentation: mirror\n")


def test_runs_that_differ_in_seed_and_places_alone_are_of_one_group(
    run: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("tiny", "elsewhere")
    places = ["--data.root", "elsewhere", "--data.cache_dir", "cached", "--trainer.default_root_dir", "other"]
    others = ["--seed_everything", "4", "--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *places, *others]) == 0
    paths = [RUN, "other" / RUN]
    configs = [SavedRun(path).config["trainer"]["accelerator"] for path in paths]
    assert configs == ["auto", "cpu"]
    capsys.readouterr()
    assert main(["compare", *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("the same settings"))
    accuracies = [read_results(path)["Accuracy/test"] for path in paths]
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert lines[start + 1].split() == ["tutorial", "2", "2", f"{mean:.4f}", f"{spread:.4f}"]
    assert lines[start + 2] == ""


def test_what_cannot_be_compared_is_named(run: str, refused: Refused) -> None:
    shutil.copytree("tiny", "other")
    for split in ("train", "test"):
        Path(f"other/{split}/dark").rename(f"other/{split}/night")
    best, last = (str(RUN / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    for args, expected in (
        ([str(RUN), "nothing"], "nothing: no such checkpoint"),
        ([str(RUN)], "compare needs two or more runs"),
        ([str(RUN), best], "is given twice: name each run once"),
        ([str(RUN), last, "--data.root", "other"], "was trained for the classes bright, dark, green"),
        ([str(RUN), last, "--data.root", "nowhere"], "--data.root nowhere"),
        ([str(RUN), "x", "--report"], "unrecognized arguments: --report"),
        ([str(RUN), last, "--trainer.precision", "16-mixed"], "unrecognized arguments: --trainer.precision"),
    ):
        code, line = refused(["compare", *args])
        assert code == 2
        assert expected in line
    for option, value in (("--trainer.precision", ["bf16-mixed"]), ("--report", [])):
        code, line = refused(["test", str(RUN), last, option, *value])
        assert code == 2
        assert f"{option} is for one run; the comparison of several takes --data.root, " in line
    (RUN / "config.yaml").write_text("trainer: [")
    code, line = refused(["compare", str(RUN), last])
    assert "config.yaml is damaged" in line
