"""The benchmark: its table, its files, and each of its measures."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cifar_lit.benchmarks import measures
from cifar_lit.benchmarks.measures import MEASURES, PILDataset
from cifar_lit.benchmarks.processes import run, run_on_terminal
from cifar_lit.benchmarks.report import bars, draw, main, table
from cifar_lit.data.augment import to_float
from cifar_lit.errors import UserError

TAKE_LONG = ("a, 0 workers", "c", "e, batch 64", "e, batch 512", "e, batch 2000", "f")
MEDIAN = {
    "a, 0 workers": {"images_per_second": 1000.0},
    "a, 2 workers": {"images_per_second": 800.0},
    "b": {"images_per_second": 2000.0},
    "c": {"images_per_second": 1900.0, "peak_gb": 0.75},
    "d, torchvision": {"images_per_second": 5000.0},
    "d, ours": {"images_per_second": 300000.0},
    "e, batch 512": {"added_ms": 0.4},
    "f": {"imports_seconds": 4.0, "help_seconds": 4.4, "first_step_seconds": 5.5},
}


def test_the_table_has_each_value_and_its_ratios() -> None:
    rows = dict(table(MEDIAN))
    assert rows["c / a (the faster)"] == "1.90"
    assert rows["c / b"] == "0.95"
    assert rows["d, ours / torchvision"] == "60.00"
    assert rows["(e) added to a step, batch 512"] == "0.40 ms"
    assert rows["(f) fit --help"] == "4.40 s, 1.10 times the imports"
    assert rows["(f) fit, to the end of the first step"] == "5.50 s, the imports and 1.50 s"
    assert rows["(g) peak of resident memory in fit"] == "0.75 GB"
    assert max(len(title) for title in rows) < 42


def test_the_table_leaves_out_what_was_not_measured() -> None:
    assert dict(table({"c": MEDIAN["c"]})).keys() == {"(c) fit, with everything", "(g) peak of resident memory in fit"}


def test_the_chart_names_its_bars_as_the_table_does() -> None:
    titles = [title for title, _ in table(MEDIAN)]
    panels = bars(MEDIAN)
    assert list(panels) == ["training, images/s", "loading, images/s", "added to a step, ms", "startup, s"]
    assert panels["added to a step, ms"] == {"(e) batch 512": 0.4}
    names = [name for title, values in panels.items() for name in values if title != "added to a step, ms"]
    assert set(names) <= set(titles)
    assert panels["startup, s"]["(f) fit --help"] == 4.4


def test_what_is_added_to_a_step_is_of_steps_with_as_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SimpleNamespace(load=lambda: (torch.zeros(70, 2, 2, 3, dtype=torch.uint8), torch.arange(70) % 2), options=[])
    num_epochs = 75  # of four batches, the last one with 10 images
    monkeypatch.setattr(measures, "_seconds", lambda _: 0.001 * num_epochs * 70)
    monkeypatch.setattr(measures, "main", lambda _: 0)
    monkeypatch.setattr(measures, "_fit_speed", lambda _: (500.0, 1000))  # all of its batches have 20 images
    assert measures.step_overhead(data, 20)["added_ms"] == pytest.approx(20)  # type: ignore[arg-type]


def test_the_chart_is_an_image(tmp_path: Path) -> None:
    for median in (MEDIAN, {"b": MEDIAN["b"]}):
        draw(median, tmp_path / "bench.png")
        assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_it_measures_on_synthetic_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "d", "--repeats", "1", "--num_images", "2000", "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out/bench.json").read_text())
    speeds = {name: values["images_per_second"] for name, values in results["median"].items()}
    assert min(speeds["d, ours"], speeds["d, torchvision"]) > 0  # which is faster says nothing on a busy machine
    assert results["rounds"]["d, ours"]["images_per_second"] == [speeds["d, ours"]]
    assert results["data"] == {"source": "synthetic", "root": "data", "num_images": 2000}
    assert results["device"]
    assert (tmp_path / "out/bench.png").exists()
    assert "d, ours / torchvision" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in TAKE_LONG)) for name in MEASURES if name[0] != "d"],
)
def test_each_measure_returns_its_values(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--measure", name, "--num_images", "2000"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values
    assert all(isinstance(value, float) for value in values.values())
    assert all(value > 0 for value in values.values()) or name[0] == "e"


def test_the_images_are_those_of_torchvision() -> None:
    from torchvision.transforms import ToTensor

    images, labels = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8), torch.arange(10)
    dataset = PILDataset(images, labels, ToTensor())
    assert len(dataset) == 10
    image, label = dataset[3]
    assert torch.equal(image, to_float(images.permute(0, 3, 1, 2))[3])
    assert label == labels[3]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num_images", "5"], "--num_images is 5: must be at least 2000"),
        (["--repeats", "0"], "--repeats is 0: must be at least 1"),
        (["--only", "xyz"], "--only is 'xyz': give some of the letters abcdef"),
        (["--out", "/dev/null/out"], "--out is /dev/null/out: cannot be written"),
        (["--out", "/proc"], "--out is /proc: cannot be written"),
        (["--gpu", "--num_images", "5000"], "--num_images is 5000, and does nothing beside --gpu"),
        (["--minutes", "5"], "--minutes is 5.0, and does nothing without --gpu"),
        (["--source", "images", "--root", "nowhere"], "nowhere"),  # before anything is measured
    ],
)
def test_a_bad_argument_is_one_line(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert expected in line


def test_a_command_that_fails_shows_why(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the reason')"]
    for call in (run, run_on_terminal):
        with pytest.raises(UserError, match="exit code 1 of") as raised:
            call(command)
        assert raised.value.exit_code == 1
        assert "the reason" in capsys.readouterr().err
