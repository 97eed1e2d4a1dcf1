"""``validate``: the validation metrics of a run, without its test images."""

import shutil
from pathlib import Path

import pytest

from cifar_lit.main import main
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results


def test_it_prints_the_validation_metrics_and_reads_no_test_image(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("home")  # where decoded images are cached
    for path in Path("tiny/test").rglob("*.*"):
        path.write_bytes(b"broken")
    assert main(["validate", str(RUN)]) == 0
    out = capsys.readouterr().out
    assert f"accuracy{read_results()['Accuracy/val']:>24.4f}            \n" in out
    assert "48 train, 12 validation\n" in out
    assert "per class" not in out


def test_a_run_without_validation_is_refused(tiny_root: Path, refused: Refused) -> None:
    main(["fit", "--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0", *FEW_EPOCHS])
    code, line = refused(["validate", str(RUN)])
    assert code == 2
    assert line == "error: `val_size` is 0: there are no validation images to score; use cifar-lit test"


def test_bad_arguments_end_in_one_line(refused: Refused) -> None:
    assert "unrecognized arguments: --report" in refused(["validate", "x", "--report"])[1]
    assert "give one run; cifar-lit compare takes several" in refused(["validate", "x", "y"])[1]
