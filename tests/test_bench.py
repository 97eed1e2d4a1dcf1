"""The benchmark: its table, its files, and each of its measurements."""

import json
from pathlib import Path

import pytest

from cifar_lit.bench.measures import MEASURES
from cifar_lit.bench.report import draw, main, table

TAKE_LONG = ("c", "e, batch 512", "e, batch 2000", "f")
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


def test_the_table_has_each_figure_and_its_ratios() -> None:
    rows = dict(table(MEDIAN))
    assert rows["c / a (the faster)"] == "1.90"
    assert rows["c / b"] == "0.95"
    assert rows["d, ours / torchvision"] == "60.00"
    assert rows["(e) added to a step, batch 512"] == "0.40 ms"
    assert rows["(f) --help"] == "4.40 s, 1.10 times the imports"
    assert rows["(f) to the end of the first step"] == "5.50 s, the imports and 1.50 s"
    assert rows["(g) peak of resident memory in fit"] == "0.75 GB"
    assert max(len(title) for title in rows) < 42


def test_the_table_leaves_out_what_was_not_measured() -> None:
    assert dict(table({"c": MEDIAN["c"]})).keys() == {"(c) fit, with everything", "(g) peak of resident memory in fit"}


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    for median in (MEDIAN, {"b": MEDIAN["b"]}):
        draw(median, tmp_path / "bench.png")
        assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_it_measures_on_pictures_made_by_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "d", "--repeats", "1", "--num_images", "2000", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out/bench.json").read_text())
    speeds = {name: figures["images_per_second"] for name, figures in results["median"].items()}
    assert min(speeds["d, ours"], speeds["d, torchvision"]) > 0  # which is faster is no matter for a busy machine
    assert results["rounds"]["d, ours"]["images_per_second"] == [speeds["d, ours"]]
    assert results["data"] == {"source": "synthetic", "root": "data", "num_images": 2000}
    assert results["device"]
    assert (tmp_path / "out/bench.png").exists()
    assert "d, ours / torchvision" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in TAKE_LONG)) for name in MEASURES if name[0] != "d"],
)
def test_each_measurement_gives_its_figures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--measure", name, "--num_images", "2000"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures
    assert all(isinstance(value, float) for value in figures.values())
    assert all(value > 0 for value in figures.values()) or name[0] == "e"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num_images", "5"], "--num_images is 5: give 2000 or more"),
        (["--repeats", "0"], "--repeats is 0: give 1 or more"),
        (["--only", "xyz"], "--only is 'xyz': give some of the letters abcdef"),
    ],
)
def test_an_argument_outside_its_range_is_named(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_data_that_is_not_there_is_named_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--source", "images", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert str(stopped.value.code).startswith("error: ")
    assert "nowhere" in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)
    assert "round 1" not in capsys.readouterr().err
