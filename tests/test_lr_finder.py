"""The learning-rate finder: the run after it is the one with that rate, and nothing of the search is left."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from cifar_lit import lr_finder
from cifar_lit.cli import main
from tests.conftest import FEW_EPOCHS, RUN
from tests.processes import state_of

Refused = Callable[[list[str]], tuple[int, str]]


def test_the_run_is_that_of_the_rate_that_was_found(tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [*FEW_EPOCHS, "--model.schedule", "cosine", "--model.momentum", "0.9"]
    main(["fit", *tiny_args, *options, "--lr_finder"])
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    lr = config["model"]["lr"]
    assert lr_finder.LOWEST < lr < lr_finder.HIGHEST
    assert f"learning rate {lr:.3g}, from {RUN}/lr_finder.png" in capsys.readouterr().out
    with Image.open(RUN / "lr_finder.png") as picture:
        assert picture.size == (600, 384)
    assert list(RUN.glob(".lr*")) == []
    found = state_of()
    main(["fit", *tiny_args, *options, "--model.lr", repr(lr), "--trainer.default_root_dir", "other"])
    assert state_of(Path("other") / RUN / "checkpoints/last.ckpt") == found
    main(["fit", "--ckpt_path", str(RUN / "checkpoints/last.ckpt"), "--trainer.max_epochs", "3"])  # and goes on with it
    assert yaml.safe_load((RUN / "hparams.yaml").read_text())["lr"] == lr


def test_the_curve_begins_where_the_loss_does(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    draw = lr_finder.draw_lrs

    def noted(lrs: Sequence[float], losses: Sequence[float], chosen: float) -> Figure:
        drawn.extend(losses)
        return draw(lrs, losses, chosen)

    monkeypatch.setattr(lr_finder, "draw_lrs", noted)
    main(["fit", *tiny_args, *FEW_EPOCHS, "--lr_finder"])
    assert drawn[0] == pytest.approx(math.log(3), abs=0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.muon_lr", "0.1"], "--lr_finder finds one rate, and beside --model.muon_lr 0.1 there are two"),
        (["--trainer.fast_dev_run", "true"], "--lr_finder belongs to the beginning of a run that is kept"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(
    options: list[str], expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--lr_finder", *options])
    assert code == 2
    assert expected in line
    assert not list(Path("lightning_logs").glob("*"))
