"""Errors of ``fit``: one line that names the option, and nothing left behind; bugs keep their traceback."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from cifar_lit.data.cifar10 import ARCHIVE, CIFAR10
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.networks import TutorialCNN
from tests.helpers.processes import run
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused, read_results
from tests.helpers.server import Behaviour, serving

ENDLESS = ["--trainer.max_epochs", "-1"]
NEEDS_LENGTH = (
    "--model.schedule and --model.warmup_epochs depend on the length of the training: give --trainer.max_epochs"
)


WRONG_NET = """\
from torch import nn
from cifar_lit.networks import Network
class Wrong(Network):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(100, num_classes)
    def forward(self, images):
        return self.linear(images.flatten(1))
"""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.learning_rate", "1"], "--model.learning_rate"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch 3; did you mean --trainer.max_epochs?"),
        (["--trainer.max_epochs", "three"], "trainer.max_epochs"),
        (["--trainer.max_epochs", "0"], "--trainer.max_epochs is 0: must be above 0, or nothing is trained"),
        (["--model.lr", "fast"], "model.lr"),
        (["--model.lr", "-1"], "--model.lr is -1.0: must be above 0"),
        (["--model.net", "ResNet"], "ResNet"),
        (["--model.net", "torch.nn.Linear"], "--model.net.in_features has no default, and must be given"),
        (["--model.net.depth", "3"], "there is no --model.net.depth (--help lists all options)"),
        (["--model.tta", "all"], "--model.tta is all: must be one of none, mirror, mirror_shift"),
        (["--data.source", "imagenet"], "imagenet"),
        (["--data.batch_size", "0"], "--data.batch_size is 0"),
        (["--data.val_size", "5000"], "--data.val_size is 5000, and there are 60 training images"),
        (["--data.root", "nowhere"], "--data.root nowhere: no such folder or archive"),
        (
            ["--data.image_sizes", "[16, 32]"],
            "--data.image_sizes has 16, which TutorialCNN does not take: leave it out",
        ),
        (["--seed_everything", "-1"], "--seed_everything is -1: must be from 0 to 4294967295"),
        (["--seed_everything", "true"], "seed_everything"),
        (["--recipe", "slow"], "recipe"),
        (["--recipe"], "recipe"),
        (["--config", "nothing.yaml"], "nothing.yaml"),
        (["--trainer.devices", "99"], "--trainer.devices is 99, and this machine has"),
        (["--trainer.accelerator", "abacus"], "--trainer: You selected an invalid accelerator name"),
        (["--trainer.fast_dev_run", "-1"], "--trainer: fast_dev_run=-1 is not a valid configuration"),
        (["--trainer.default_root_dir", "s3://bucket/runs"], "--trainer.default_root_dir is s3://bucket/runs"),
        (
            ["--trainer.val_check_interval", "0.5"],
            "--trainer.val_check_interval is 0.5: must be 1.0, the end of an epoch",
        ),
        (["--trainer.check_val_every_n_epoch", "0"], "--trainer.check_val_every_n_epoch is 0: must be at least 1"),
        (["--checkpoint.every_n_steps", "-1"], "--checkpoint.every_n_steps is -1: must be at least 0"),
        (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt: no such checkpoint"),
        (["--ckpt_path", "http://127.0.0.1/last.ckpt"], "http://127.0.0.1/last.ckpt is a URL: download the checkpoint"),
        (
            [*ENDLESS, "--trainer.max_time", "00:00:00:09", "--model.schedule", "cosine"],
            NEEDS_LENGTH,
        ),
        (
            [*ENDLESS, "--trainer.max_steps", "9", "--model.warmup_epochs", "1"],
            NEEDS_LENGTH,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_end_in_one_line_and_exit_code_2(
    args: list[str], expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "8", *args])
    assert code == 2
    assert line.startswith("error: ")
    assert expected in line
    assert not Path("lightning_logs").exists()


def test_images_without_their_source_are_recognised(tiny_root: Path, refused: Refused) -> None:
    code, line = refused(["fit", "--data.root", str(tiny_root)])
    assert code == 2
    assert "tiny looks like images of your own: set --data.source to images as well, or give" in line


def test_a_folder_that_cannot_be_made_is_named(tiny_args: list[str], refused: Refused) -> None:
    Path("lightning_logs").write_text("not a folder")
    for options in ([], ["--trainer.logger", "false"], ["--trainer.logger", "CSVLogger"]):
        options += ["--trainer.logger.save_dir", "csv"] * ("CSVLogger" in options)
        code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, *options])
        assert code == 2
        assert "--trainer.default_root_dir is .: no run can be kept there (File exists); give another folder" in line
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.default_root_dir", "other"]) == 0


# Bugs.


class BrokenNet(TutorialCNN):
    """Has a bug in its constructor."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        len(num_classes)  # type: ignore[arg-type]


class BrokenForward(TutorialCNN):
    """Has a bug in its forward pass."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images, 1)  # type: ignore[call-arg]


class BrokenCallback(Callback):
    """Has a bug that the constructor of the Trainer meets, or one in a hook, or one in its own constructor.

    Args:
        where: The place of the bug.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        if where == "init":
            raise TypeError("a bug in init")

    @property
    def state_key(self) -> str:
        if self.where == "state_key":
            raise TypeError("a bug in state_key")
        return "broken"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def on_train_start(self, *args: Any) -> None:
        if self.where == "hook":
            raise ValueError("a bug in hook")


@pytest.mark.parametrize("where", ["init", "state_key", "hook"])
def test_a_bug_in_a_callback_keeps_its_traceback(where: str, tiny_args: list[str]) -> None:
    options = ["--trainer.callbacks+", "tests.cli.test_errors.BrokenCallback", "--trainer.callbacks.where", where]
    with pytest.raises((TypeError, ValueError), match=f"a bug in {where}") as error:
        main(["fit", *tiny_args, *FEW_EPOCHS, *options])
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize(
    ("net", "expected"),
    [("BrokenNet", "object of type 'int' has no len"), ("BrokenForward", "takes 2 positional arguments but 3")],
)
def test_a_bug_in_a_network_is_named_by_file_and_line(
    net: str, expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, "--model.net", f"tests.cli.test_errors.{net}"])
    assert code == 2
    assert re.search(rf"--model.net: .*test_errors.py, line \d+, in \w+: TypeError: .*{expected}", line)
    assert not Path("lightning_logs").exists()  # no step was made


def test_a_bug_of_ours_keeps_its_traceback(tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # It is raised by torch, in a line of ours: the buffer has the wrong shape.
    monkeypatch.setattr("cifar_lit.module.torch.tensor", lambda values: torch.zeros(5, 3, 7)[: len(values)].reshape(-1))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        main(["fit", *tiny_args, *FEW_EPOCHS])


# The machine.


def no_official_server() -> None:
    defaults = CIFAR10.__init__.__kwdefaults__
    assert defaults is not None
    defaults["archive"] = dataclasses.replace(ARCHIVE, urls=())


def test_with_no_network_it_says_what_was_tried_and_the_ways_out() -> None:
    with serving(Behaviour(b"", statuses=[404] * 9)) as url:
        done = run(["fit", "--data.mirror", url, "--trainer.max_epochs", "1"], inside=no_official_server)
    assert done.code == 1
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    for part in (f"{url}: answered 404", "--data.mirror URL", "by hand", "--data.source synthetic", "images"):
        assert part in line


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_a_strategy_that_copies_the_process_is_refused_before_the_first_step(strategy: str, refused: Refused) -> None:
    code, line = refused(["fit", "--data.source", "synthetic", "--trainer.strategy", strategy])
    assert (code, line) == (2, f"error: --trainer.strategy is {strategy}: must be ddp, which starts its own processes")
    assert not Path("lightning_logs").exists()


def test_a_recipe_beside_a_run_to_resume_is_refused(run: str, refused: Refused) -> None:
    config = (RUN / "config.yaml").read_bytes()
    code, line = refused(["fit", "--ckpt_path", str(RUN), "--recipe", "tuned"])
    assert (code, line) == (2, "error: --recipe belongs to a new run: leave it out beside --ckpt_path")
    assert (RUN / "config.yaml").read_bytes() == config


def test_a_fit_without_test_images_still_ends_with_results(tiny_args: list[str]) -> None:
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--report", "--trainer.limit_test_batches", "0"]) == 0
    assert read_results()["num_test"] == 0
    assert read_results()["Accuracy/val"] > 0
    assert "it was not tested" in Path(RUN, "report.html").read_text(encoding="utf-8")


def test_a_layer_that_does_not_fit_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("wrong_net.py").write_text(WRONG_NET, encoding="utf-8")
    monkeypatch.syspath_prepend(".")
    code, line = refused(["fit", "--data.source", "synthetic", "--model.net", "wrong_net.Wrong"])
    assert code == 2
    assert line == (
        "error: --model.net is Wrong: its layer linear expects 100 features, and gets 3,072, "
        "from the image; "
        "cifar-lit explain shows all layers"
    )
    code, line = refused(["fit", "--data.source", "synthetic", "--model.net", "missing_net.Wrong"])
    assert code == 2
    assert "there is no module missing_net in this folder, and none is installed" in line
