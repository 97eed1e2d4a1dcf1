"""The files of the ladder: each changes what it says, from the tutorial's settings to those of ``fast10``."""

import re
from pathlib import Path

import pytest

from cifar_lit.commands.ladder import step_setting
from cifar_lit.commands.setting import Setting
from cifar_lit.recipes import LADDER, RECIPES
from cifar_lit.schema import leaves, read_yaml

IDEAS = {
    "01_normalised": {"mean", "std"},
    "02_momentum": {"momentum", "nesterov"},
    "03_relu": {"activation"},
    "04_schedule": {"schedule", "warmup_epochs"},
    "05_flips_crops": {"crop_padding", "flip"},
    "06_batch_norm": {"norm"},
    "07_vgg": {"widths", "kernel_size", "num_convs"},
    "08_pooled_head": {"head"},
    "09_large_batch": {"batch_size"},
    "10_label_smoothing": {"label_smoothing"},
    "11_whitening": {"whiten"},
    "12_identity": {"identity", "norm", "activation"},
    "13_muon": {"muon_lr", "muon_momentum", "momentum", "weight_decay"},
    "14_averaged_weights": {"callbacks"},
    "15_image_sizes": {"image_sizes"},
    "16_tta": {"tta"},
}
"""What each step changes, beside the learning rate that suits it."""


def test_the_steps_are_numbered() -> None:
    assert [path.name[:3] for path in LADDER] == [f"{number:02}_" for number in range(len(LADDER))]
    assert [path.stem for path in LADDER[1:]] == list(IDEAS)


@pytest.mark.parametrize("number", range(1, len(LADDER)))
def test_a_step_changes_one_thing_and_nothing_else(number: int) -> None:
    before, after = (step_setting(step, []).values for step in (number - 1, number))
    own = {name.rpartition(".")[2] for name in Setting("", ["--config", str(LADDER[number])]).values}
    changed = {name.rpartition(".")[2] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == own, "a value that it repeats from the step before"
    assert changed - {"lr"} == IDEAS[LADDER[number].stem]


@pytest.mark.parametrize("path", LADDER, ids=lambda path: path.stem)
def test_a_header_has_title_idea_and_source(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[0] != "#")]]
    title, empty, *text = header
    assert 3 <= len(title) <= 40
    assert not empty
    idea, source = " ".join(text).split(" Source: ")
    assert 2 <= len(re.findall(r"[.:](?= |$)", idea)) <= 4
    assert re.search(r"\d{4}\.\d{4,5}|\b(19|20)\d\d\b|https://|tutorial", source)


def test_it_begins_with_the_tutorial_and_ends_with_fast10() -> None:
    first, last = (step_setting(step, []).values for step in (0, len(LADDER) - 1))
    tutorial, fast10 = (dict(leaves(read_yaml(RECIPES[name]))) for name in ("tutorial", "fast10"))
    assert (first["model.lr"], first["data.batch_size"]) == (tutorial["lr"], tutorial["batch_size"])
    for name in ("mean", "std", "label_smoothing", "muon_lr", "muon_momentum", "lr", "momentum", "nesterov", "tta"):
        assert last[f"model.{name}"] == read_yaml(RECIPES["fast10"])["model"][name], name
    assert last["data.batch_size"] == fast10["batch_size"]
