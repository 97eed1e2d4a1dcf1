"""The command line's errors: one line that names the argument, a non-zero exit, and nothing lost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_lit.cli import main
from cifar_lit.networks import TutorialCNN
from tests.conftest import FEW_EPOCHS, RUN
from tests.sources.server import Behaviour, serving

Refused = Callable[[list[str]], tuple[int, str]]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.learning_rate", "1"], "--model.learning_rate"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch"),
        (["--trainer.max_epochs", "three"], "trainer.max_epochs"),
        (["--model.lr", "fast"], "model.lr"),
        (["--model.lr", "-1"], "--model.lr is -1.0: give a number above 0"),
        (["--model.net", "ResNet"], "ResNet"),
        (["--model.net", "torch.nn.Linear"], "torch.nn.Linear"),
        (["--model.net.depth", "3"], "depth"),
        (["--data.source", "imagenet"], "imagenet"),
        (["--data.batch_size", "0"], "--data.batch_size is 0"),
        (["--data.val_size", "5000"], "--data.val_size is 5000, and there are 60 training images"),
        (["--data.root", "nowhere"], "--data.root nowhere: there is no such folder or archive"),
        (["--seed_everything", "-1"], "--seed_everything is -1"),
        (["--seed_everything", "true"], "seed_everything"),
        (["--recipe", "slow"], "recipe"),
        (["--recipe"], "recipe"),
        (["--config", "nothing.yaml"], "nothing.yaml"),
        (["--trainer.devices", "99"], "--trainer.devices is 99, and this machine has"),
        (["--trainer.accelerator", "abacus"], "abacus"),
        (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt: there is no such checkpoint"),
        (["--trainer.default_root_dir", "s3://bucket/runs"], "--trainer.default_root_dir is s3://bucket/runs"),
        (["--ckpt_path", "http://127.0.0.1/last.ckpt"], "is a URL: download the checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_end_in_one_line_and_exit_code_2(
    args: list[str], expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", *args])
    assert code == 2
    assert line.startswith("error: ")
    assert expected in line
    assert not list(Path().rglob("checkpoints"))


@pytest.mark.parametrize("subcommand", ["test", "validate"])
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ([], "needs a run's folder or a checkpoint"),
        (["--data.source", "synthetic"], "needs a run's folder or a checkpoint"),
        (["nowhere"], "nowhere is neither a checkpoint nor a run's folder"),
        (["."], "is neither a checkpoint nor a run's folder"),
        (["text.ckpt"], "text.ckpt is not a checkpoint of this project"),
        (["empty.ckpt"], "empty.ckpt is not a checkpoint of this project"),
        (["weights.ckpt"], "weights.ckpt is not a checkpoint of this project"),
    ],
)
def test_random_weights_are_never_scored(subcommand: str, place: list[str], expected: str, refused: Refused) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    Path("empty.ckpt").touch()
    torch.save(TutorialCNN().state_dict(), "weights.ckpt")
    code, line = refused([subcommand, *place])
    assert code == 2
    assert expected in line


def test_a_checkpoint_that_is_taken_back_is_not_replaced_by_random_weights(run: str, refused: Refused) -> None:
    for options in (["--ckpt_path", "null"], ["--config", str(RUN / "config.yaml")]):
        code, line = refused(["test", str(RUN), *options])
        assert code == 2
        assert "--ckpt_path is null" in line


def test_a_checkpoint_is_not_scored_on_other_classes(run: str, tmp_path: Path, refused: Refused) -> None:
    code, line = refused(["test", str(RUN), "--data.source", "synthetic"])
    assert code == 2
    assert "was trained for the classes bright, dark, green" in line


def test_a_fit_that_made_no_step_tests_nothing(tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", "--trainer.max_epochs", "0"])
    assert (code, line.partition(":")[0]) == (2, "error")
    assert "nothing was trained" in line
    assert not list(Path().rglob("results.json"))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--model.lr", "0.5"], "lr 0.01 (asked for: 0.5)"),
        (["--data.split_seed", "7"], "split_seed 0 (asked for: 7)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_run_does_not_go_on_with_other_settings_than_it_began_with(
    run: str, tiny_args: list[str], option: list[str], expected: str, refused: Refused
) -> None:
    path = str(RUN / "checkpoints/last.ckpt")
    options = [*tiny_args, "--data.batch_size", "8", "--seed_everything", "3", "--ckpt_path", path, *option]
    code, line = refused(["fit", *options])
    assert code == 2
    assert f"goes on with the settings of its optimizer, network and data: {expected}; give the same" in line
    assert not Path("lightning_logs/version_1").exists()


def test_a_finished_run_has_nothing_to_go_on_with(run: str, tiny_args: list[str], refused: Refused) -> None:
    path = str(RUN / "checkpoints/last.ckpt")
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--seed_everything", "3", "--ckpt_path", path])
    assert code == 2
    assert f"--trainer.max_epochs is 2, and {path} has 2 epochs behind it: give more" in line


def test_a_bad_checkpoint_to_go_on_from_is_named(tiny_args: list[str], refused: Refused) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", "--ckpt_path", "text.ckpt"])
    assert code == 2
    assert "text.ckpt is not a checkpoint of this project" in line


def test_an_image_size_that_the_network_does_not_take_is_named(tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", "--data.image_sizes", "[16, 32]"])
    assert code == 2
    assert line == "error: --data.image_sizes has 16, which TutorialCNN does not take: leave it out"


def test_a_schedule_without_an_end_is_refused(tiny_args: list[str], refused: Refused) -> None:
    endless = ["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:09", "--model.schedule", "cosine"]
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", *endless])
    assert code == 2
    assert "need --trainer.max_epochs or max_steps" in line


def test_pictures_without_their_source_are_told_of(tiny_root: Path, refused: Refused) -> None:
    code, line = refused(["fit", "--data.root", str(tiny_root)])
    assert code == 2
    assert line.endswith("tiny, which looks like pictures: give --data.source images, too")


def test_a_subcommand_is_needed(refused: Refused) -> None:
    code, line = refused(["train"])
    assert code == 2
    assert line.startswith("error: train is no command: give one of fit, ")


def test_a_bug_keeps_its_traceback(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # It is raised by torch, in a line of ours: the buffer has the wrong shape.
    monkeypatch.setattr("cifar_lit.module.torch.tensor", lambda values: torch.zeros(5, 3, 7)[: len(values)].reshape(-1))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        main(["fit", *tiny_args, *FEW_EPOCHS])


def test_with_no_network_the_script_says_what_was_tried_and_the_ways_out(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "fit.py"
    with serving(Behaviour(b"", statuses=[404] * 9)) as url:
        options = ["--data.mirror", url, "--trainer.max_epochs", "1"]
        code = (
            "import sys, runpy, cifar_lit.sources.cifar10 as c, dataclasses;"
            "c.Cifar10.__init__.__kwdefaults__['archive'] = dataclasses.replace(c.ARCHIVE, urls=());"
            f"sys.argv = ['fit.py', *{options!r}]; runpy.run_path({str(script)!r}, run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in (f"{url}: answered 404", "--data.mirror URL", "by hand", "--data.source synthetic", "images"):
        assert part in line


def test_validate_without_validation_is_refused(tiny_root: Path, refused: Refused) -> None:
    main(["fit", "--data.source", "images", "--data.root", str(tiny_root), "--data.val_size", "0", *FEW_EPOCHS])
    assert refused(["validate", str(RUN)]) == (
        2,
        "error: --data.val_size is 0: there are no validation images to score; use test",
    )


def test_a_reader_that_went_away_is_no_error(run: str) -> None:
    read, write = os.pipe()
    os.close(read)
    code = f"from cifar_lit.cli import main; main(['test', {str(RUN)!r}])"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.returncode == 0
    assert "error" not in done.stderr.lower()
