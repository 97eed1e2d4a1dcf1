"""Configuration files and values: encodings, limits, the home folder, recipes, earlier versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cifar_lit.cli.config import expand_home, load_yaml
from cifar_lit.cli.parser import CommandParser
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.schema import MAX_YAML_BYTES, read_utf8
from tests.helpers.options import Workbench
from tests.helpers.processes import environment
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused

NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NESTED, "10,000 values, aliases written out"),
        ("trainer: {callbacks: &all [*all]}", "10,000 values"),
        ("trainer: {callbacks: [*none]}", "found undefined alias"),
        ("trainer: &t {max_epochs: 3}\nmodel: {mean: *T}", "found undefined alias"),
        ("data: " + "{a: " * 60 + "1" + "}" * 60, "in 20 levels"),
        ("[" * 5000, "exceeded maximum nesting depth"),
        ("trainer: {max_epochs: [", "did not find expected node content"),
        ("trainer: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("", "--config has no settings: must be a mapping"),
        ("- trainer", "--config has no settings: must be a mapping"),
        ("hello", "--config has no settings: must be a mapping"),
        ("model: {test_views: mirror}", "there is no --model.test_views; it is --model.tta now"),
        ("weights_only: null", "there is no --weights_only, in a file either: checkpoints are always read without"),
        ("trainer: {max_epoch: 3}", "there is no --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("data: {root: b\xe4r}".encode("latin1"), "is no configuration: it is not text in UTF-8"),
        ("trainer: {max_epochs: 3}".encode("utf-16"), "is no configuration: it is not text in UTF-8"),
        (b" " * (MAX_YAML_BYTES + 1), "has 65,537 bytes: at most 65,536 are read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(
    text: str | bytes, expected: str, workbench: Workbench
) -> None:
    Path("my.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    assert expected in workbench.refusal(["--config", "my.yaml"])


def test_a_folder_and_a_pipe_are_no_configuration(workbench: Workbench) -> None:
    assert "Path is not a file" in workbench.refusal(["--config", "."])
    assert "File does not exist" in workbench.refusal(["--config", "nothing.yaml"])
    os.mkfifo("pipe")  # reading it would wait for ever
    assert "pipe is not a regular file" in workbench.refusal(["--config", "pipe"])


def test_utf8_with_or_without_a_mark_at_its_start_is_read(workbench: Workbench) -> None:
    for mark in ("", "\ufeff"):
        Path("my.yaml").write_text(f"{mark}data: {{root: größe}}\n", encoding="utf-8")
        workbench.parse("--config", "my.yaml")
        assert workbench.cli.config["data"]["root"] == "größe"
    Path("part.yaml").write_text("\ufeff{max_epochs: 4}", encoding="utf-8")
    workbench.parse("--trainer", "part.yaml")
    assert workbench.cli.config["trainer"]["max_epochs"] == 4


def test_aliases_within_the_limit_are_taken() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a\nc: {d: *a}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_the_home_folder_is_expanded_wherever_a_path_stands(workbench: Workbench) -> None:
    home = str(Path.home())
    for given, expected in (
        ("~/x", f"{home}/x"),
        ("~", home),
        ("--to=~/x", f"--to={home}/x"),
        ("a~/x", "a~/x"),
        ("--lr=1", "--lr=1"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
    ):
        assert expand_home(given) == expected
    Path("my.yaml").write_text(
        "trainer:\n  default_root_dir: ~/a\n  logger: {class_path: CSVLogger, init_args: {save_dir: ~/b}}"
    )
    workbench.parse("--config", "my.yaml", "--data.root=~/c", "--data.cache_dir", "~/d")
    config = workbench.cli.config
    assert config["trainer"]["default_root_dir"] == f"{home}/a"
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == f"{home}/b"
    assert (config["data"]["root"], config["data"]["cache_dir"]) == (f"{home}/c", f"{home}/d")
    workbench.parse(
        "--trainer.profiler=SimpleProfiler", "--trainer.profiler.dirpath=~/e", "--trainer.default_root_dir", "~"
    )
    assert workbench.cli.config["trainer"]["profiler"]["init_args"]["dirpath"] == f"{home}/e"
    assert workbench.cli.config["trainer"]["default_root_dir"] == home
    parser = CommandParser("try", "RUN", "Try.", "cifar-lit try x")
    parser.add_argument("run")
    parser.add_argument("--to")
    options = parser.parse_args(["~/run", "--to=~/x"])
    assert (options.run, options.to) == (f"{home}/run", f"{home}/x")


def test_another_recipe_beside_the_configuration_of_a_run_is_refused(workbench: Workbench) -> None:
    workbench.parse()
    Path("config.yaml").write_text(workbench.cli.dump())
    for recipe in ("tuned", "fast"):
        line = workbench.refusal(["--config", "config.yaml", "--recipe", recipe])
        assert line.startswith(f"--recipe {recipe} changes nothing: ")
        assert "config.yaml, of the recipe tutorial, has all its settings; leave out one of the two" in line
    assert not workbench.refusal(["--config", "config.yaml", "--recipe", "tutorial"])
    Path("part.yaml").write_text("recipe: tuned\nmodel: {lr: 0.5}\n")
    assert not workbench.refusal(["--config", "part.yaml", "--recipe", "fast"])


@pytest.mark.parametrize("variables", [{"PYTHONUTF8": "1"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=str)
@pytest.mark.slow
def test_a_configuration_has_the_same_bytes_in_any_locale(variables: dict[str, str], tiny_args: list[str]) -> None:
    noted = "{class_path: tests.helpers.callbacks.Noted, init_args: {note: größe 犬}}"
    Path("my.yaml").write_bytes(f"trainer: {{callbacks: [{noted}]}}".encode())
    command = [sys.executable, "-m", "cifar_lit", "fit", *tiny_args, *FEW_EPOCHS, "--config", "my.yaml"]
    done = subprocess.run(command, env=environment(LC_ALL="C", **variables), capture_output=True, timeout=200)
    config = (RUN / "config.yaml").read_bytes() if (RUN / "config.yaml").exists() else b""
    assert "note: größe 犬".encode() in config, done.stderr.decode(errors="replace")


def test_report_takes_a_value(workbench: Workbench) -> None:
    for option, expected in (
        ("--report=false", False),
        ("--report=true", True),
        ("--no_report", False),
        ("--report", True),
    ):
        workbench.parse(option)
        assert workbench.cli.config["report"] is expected
    assert "must be true or false" in workbench.refusal(["--report=maybe"])


def test_what_is_read_is_what_is_said_about_it() -> None:
    with pytest.raises(UserError, match=r"nothing.yaml cannot be read \(No such file"):
        read_utf8(Path("nothing.yaml"))


def test_print_config_is_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--print_config", "--trainer.default_root_dir=~/x"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["trainer"]["default_root_dir"] == str(Path.home() / "x")


def test_a_file_that_is_not_yaml_is_named(refused: Refused) -> None:
    Path("good.yaml").write_text("trainer: {max_epochs: 1}\n")
    Path("bad.yaml").write_text("trainer: [1, 2\n")
    code, line = refused(["fit", "--config", "good.yaml", "--config", "bad.yaml"])
    assert code == 2
    assert (
        "bad.yaml is damaged: it is not YAML (while parsing a flow sequence in line 1, column 10 did not find" in line
    )
