"""A run from elsewhere that is resumed: what its files may do without ``--trust_run``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cifar_lit.cli.trust import check_config_of_run
from cifar_lit.errors import UserError
from cifar_lit.main import main
from tests.helpers.runs import RUN, Refused, read_results
from tests.helpers.stored import changed, copy_here, train_once

RESUME = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "2"]
CALLBACKS = "lightning.pytorch.callbacks"
MKDIR = {"class_path": "tests.helpers.processes.Touch", "init_args": {"path": "evil"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_once(tmp_path_factory.mktemp("trained"))


def callback(name: str, **init_args: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": f"{CALLBACKS}.{name}", "init_args": init_args}]}


def logger(name: str, **init_args: Any) -> dict[str, Any]:
    return {"logger": {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": init_args}}


def check(config: dict[str, Any] | str, *given: str) -> str:
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    try:
        check_config_of_run(RUN / "config.yaml", given)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "trainer",
    [
        {"logger": False, "callbacks": None, "max_time": "00:01:00:00", "profiler": "simple", "strategy": "ddp"},
        callback("EMAWeightAveraging", decay=0.99),
        callback("early_stopping.EarlyStopping", monitor="Accuracy/val", mode="max"),
        callback("ModelCheckpoint", filename="{epoch}-{Accuracy/val:.3f}", dirpath=str(RUN / "mine")),
        {"profiler": {"class_path": "SimpleProfiler", "init_args": {"filename": "perf"}}},
        {"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"static_graph": True}}},
        logger("CSVLogger", save_dir=str(RUN)),
        {"default_root_dir": "/elsewhere"},  # which is not used
    ],
    ids=lambda trainer: next(iter(trainer)),
)
def test_plain_parts_of_lightning_resume_as_they_are(trainer: dict[str, Any]) -> None:
    model = {"net": {"class_path": "cifar_lit.networks.FastCNN", "init_args": {"widths": [4, 4]}}}
    data = {"mirror": None, "cache_dir": "~/.cache/cifar_lit", "root": "/data/cifar"}
    assert check({"trainer": trainer, "model": model, "data": data, "ckpt_path": None}) == ""


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        (callback("LambdaCallback", on_fit_start=MKDIR), "callbacks.on_fit_start.class_path runs 'tests.helpers."),
        (callback("LambdaCallback", on_fit_start="os.abort"), "trainer.callbacks.on_fit_start imports 'os.abort'"),
        ({"callbacks": [{"class_path": "mine.Callback"}]}, "trainer.callbacks.class_path runs 'mine.Callback'"),
        ({"callbacks": "mine.Callback"}, "trainer.callbacks runs 'mine.Callback'"),
        ({"callbacks+": [{"class_path": "mine.Callback"}]}, "trainer.callbacks.class_path runs 'mine.Callback'"),
        ({"callbacks": "[{class_path: mine.Callback}]"}, "trainer.callbacks.class_path runs 'mine.Callback'"),
        ({"callbacks": '["{class_path: mine.Callback}"]'}, "trainer.callbacks.class_path runs 'mine.Callback'"),
        (callback("ModelCheckpoint", dirpath="/elsewhere"), "trainer.callbacks.dirpath writes to '/elsewhere'"),
        (callback("ModelCheckpoint", dirpath="other"), "trainer.callbacks.dirpath writes to 'other'"),
        (callback("ModelCheckpoint", filename="a/../../b"), "trainer.callbacks.filename writes to 'a/../../b'"),
        (callback("OnExceptionCheckpoint", dirpath="~/x"), "trainer.callbacks.dirpath writes to '~/x'"),
        (logger("CSVLogger", save_dir="."), "trainer.logger.save_dir writes to '.'"),
        (logger("TensorBoardLogger", save_dir="$HOME"), "trainer.logger.save_dir writes to '$HOME'"),
        (logger("WandbLogger"), "trainer.logger.class_path runs 'lightning.pytorch.loggers.WandbLogger'"),
        ({"logger": "WandbLogger"}, "trainer.logger runs 'WandbLogger'"),
        ({"profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": "/x"}}}, "dirpath writes to '/x'"),
        ({"plugins": "lightning.pytorch.plugins.io.TorchCheckpointIO"}, "trainer.plugins is 'lightning.pytorch.pl"),
        ({"plugins": [{"class_path": "lightning.pytorch.plugins.io.TorchCheckpointIO"}]}, "plugins.class_path runs"),
        ({"strategy": {"class_path": "DDPStrategy", "init_args": {"checkpoint_io": {"class_path": "a.B"}}}}, "a.B"),
        ({"model_registry": "theirs"}, "trainer.model_registry is 'theirs'"),
        ({"accelerator": "x" * 2000}, "trainer.accelerator has 2,000 characters"),
        ({"accelerator": "a\0b"}, r"trainer.accelerator has 3 characters, 'a\x00b'"),
    ],
)
def test_what_runs_code_or_writes_elsewhere_is_listed(trainer: dict[str, Any], expected: str) -> None:
    line = check({"trainer": trainer})
    assert line.startswith("lightning_logs/version_0/config.yaml does more than set plain options: ")
    assert expected in line
    assert line.endswith(". Give --trust_run if you trust where it comes from")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"trainer": "more.yaml"}, "trainer imports 'more.yaml'"),
        ({"trainer": "more"}, "trainer reads 'more'"),
        ({"config": "more"}, "config reads 'more'"),
        ({"trust_run": True}, "trust_run is set"),
        ({"model": {"net": {"class_path": "antigravity.Net"}}}, "model.net.class_path imports 'antigravity.Net'"),
        ({"model": {"net": "os.system"}}, "model.net imports 'os.system'"),
        ({"trainer": "-"}, "trainer reads '-'"),
        ("trainer.logger.class_path: mine.Logger", "trainer.logger.class_path runs 'mine.Logger'"),
        ({"data": {"mirror": "http://theirs/x"}}, "data.mirror asks 'http://theirs/x' for the images"),
        ({"data": {"cache_dir": "/theirs"}}, "data.cache_dir writes to '/theirs'"),
    ],
)
def test_the_rest_of_a_configuration(config: dict[str, Any], expected: str) -> None:
    RUN.mkdir(parents=True)
    (RUN / "more").write_text("a: 1")
    assert expected in check(config)
    assert "antigravity" not in os.sys.modules  # type: ignore[attr-defined]


def test_a_path_that_the_command_line_replaces_is_not_used() -> None:
    config = {"data": {"mirror": "http://theirs/x", "cache_dir": "/theirs"}}
    assert check(config, "--data.mirror", "--data.cache_dir") == ""
    assert "data.cache_dir" in check(config, "--data.mirror")
    assert "imports" in check({"model": {"net": "mine.Net"}}, "--model.net")  # before it is replaced


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [" + "x," * 100 + "]\nb: &b [" + "*a," * 99 + "]\nc: [" + "*b," * 9 + "]", "10,000 values"),
        ("a: &a [*a]", "10,000 values"),
        ("a: " + "[" * 60_000, "is damaged"),
        ("a: " + "[" * 30 + "]" * 30, "in 20 levels"),
        ("a: " + "x" * 70_000, "has 70,003 bytes: at most 65,536 are read"),
        ("a: !!python/object/apply:os.abort []", "it is not YAML"),
        ("a: !!int ''", "it is not YAML"),
        ("[1]", "it holds no settings"),
    ],
)
def test_a_configuration_that_would_take_for_ever_is_refused(text: str, expected: str) -> None:
    assert expected in check(text)


def test_code_beside_a_checkpoint_needs_trust(trained: Path, refused: Refused) -> None:
    copy_here(trained)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    config["trainer"] |= callback("LambdaCallback", on_fit_start=MKDIR)
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    code, line = refused(RESUME)
    assert code == 2
    assert "config.yaml does more than set plain options: trainer.callbacks.on_fit_start.class_path runs" in line
    assert not Path("evil").exists()
    assert main([*RESUME, "--trust_run"]) == 0
    assert Path("evil").exists()
    assert "trust_run" not in yaml.safe_load((RUN / "config.yaml").read_text())


def test_nothing_is_written_through_a_link(trained: Path, refused: Refused) -> None:
    copy_here(trained)
    Path(RUN, "hparams.yaml").unlink()
    Path(RUN, "hparams.yaml").symlink_to(Path("thesis.txt").absolute())
    for args in (RESUME, ["test", str(RUN), "--report"]):
        code, line = refused(args)
        assert (code, f"{RUN}/hparams.yaml is a link to " in line) == (2, True), line
        assert line.endswith("nothing is written in there; replace it, or give --trust_run if it is yours")
    assert not Path("thesis.txt").exists()


def test_the_run_itself_may_be_reached_in_any_spelling(trained: Path) -> None:
    copy_here(trained)
    Path("latest").symlink_to(RUN)
    with changed("best.ckpt") as checkpoint:  # a later epoch is better
        for key, state in checkpoint["callbacks"].items():
            if key.startswith("Best"):
                low = torch.tensor(-1.0)
                state |= {"best_model_score": low, "kth_value": low}
                state["best_k_models"] = dict.fromkeys(state["best_k_models"], low)
    best = (RUN / "checkpoints/best.ckpt").read_bytes()
    assert main(["fit", "--ckpt_path", "latest/checkpoints/../checkpoints/last.ckpt", *RESUME[3:]]) == 0
    assert (RUN / "checkpoints/best.ckpt").read_bytes() != best
    assert read_results()["checkpoint"].endswith("checkpoints/best.ckpt")
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def lack_state(checkpoint: dict[str, Any]) -> None:
    for name in ("loops", "callbacks", "optimizer_states", "lr_schedulers"):
        del checkpoint[name]


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "weights": (lack_state, "holds weights alone (loops, callbacks, optimizer_states, lr_schedulers missing)"),
    "loops": (lambda c: c["loops"].pop("fit_loop"), "its training state is of another form (epochs)"),
    "progress": (lambda c: c["loops"]["fit_loop"].update({"epoch_loop.batch_progress": {"total": 3}}), "(loops)"),
    "saver": (lambda c: c["callbacks"]["Saver"].update(random=torch.zeros(3)), "(Saver)"),
    "momentum": (lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=torch.zeros(3)), "(SGD)"),
    "number": (lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=-1), "(SGD)"),
    "rate": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(momentum="much"), "(SGD)"),
    "groups": (lambda c: c["optimizer_states"].clear(), "is of another form (optimizers)"),
    "schedule": (lambda c: c["lr_schedulers"][0].update(last_epoch="x"), "(LambdaLR)"),
    "version": (lambda c: c.update({"pytorch-lightning_version": "new"}), "is of another form (InvalidVersion"),
}


SLOW = ("progress", "saver", "number", "rate", "groups", "schedule")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in BAD])
def test_a_training_state_of_another_form_is_one_line(name: str, trained: Path, refused: Refused) -> None:
    copy_here(trained)
    change, expected = BAD[name]
    with changed() as checkpoint:
        change(checkpoint)
    code, line = refused(RESUME)
    assert code == 2
    assert "last.ckpt" in line
    assert expected in line
