"""A training that was stopped and resumed ends with the bits of one that was not."""

import functools
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar_lit.callbacks.saver import Saver
from cifar_lit.errors import UserError
from cifar_lit.main import main
from tests.helpers.processes import (
    LAST,
    at_step,
    before_step,
    curves,
    record_images,
    recorded_images,
    run,
    state_of,
    stopped_at,
)
from tests.helpers.runs import EPOCHS, FEW_EPOCHS, RUN, Refused, callback, read_metrics, read_results

FLOAT32 = ["--trainer.precision", "32-true"]
"""In place of ``auto``, which a disturbed measuring may settle otherwise in the next run."""
RECIPES = {
    "tutorial": ["--model.lr", "0.02"],
    # Its average of the weights, schedule, momentum, Muon, crops and mirror images.
    "tuned": ["--recipe", "tuned", "--model.schedule", "linear", *FLOAT32],
    "tuned in bfloat16": ["--recipe", "tuned", "--trainer.precision", "bf16-mixed"],
    # Its growing images, whitening and alternating mirror images; the gradients of two batches are added.
    "fast": [
        *["--recipe", "fast", "--trainer.accumulate_grad_batches", "2", "--data.image_sizes", "[16,24]"],
        *["--model.net.widths", "[16,32,32]", *FLOAT32],
    ],
}
MOMENTS: list[tuple[int, int]] = [
    (1, signal.SIGTERM),  # in the first step of all
    (4, signal.SIGINT),
    (6, signal.SIGTERM),  # in the last step of an epoch
    (8, signal.SIGKILL),  # nothing can be saved: the last save was at step 6 or 8
    (15, signal.SIGTERM),
    (18, signal.SIGTERM),  # in the last step of the last epoch
]


def ends_with_the_same_bits(recipe: str, moments: list[tuple[int, int]], tiny_args: list[str]) -> None:
    """Stop a run at each of the moments, resume it, and compare all that it ends with."""
    options = [*tiny_args, *RECIPES[recipe], *EPOCHS]
    saves = ["--checkpoint.every_n_steps", "1" if recipe == "fast" else "2"]
    assert run(["fit", *options, *saves], inside=record_images).code == 0
    undisturbed = state_of(), curves(), read_metrics(), recorded_images()
    assert [sorted(undisturbed[-1][epoch]) for epoch in range(3)] == [list(range(48))] * 3
    for step, signum in moments:
        shutil.rmtree("lightning_logs")
        Path("images.jsonl").unlink()
        stopped = run(["fit", *options, *saves], inside=functools.partial(record_images, step, signum))
        assert stopped.code == (-9 if signum == signal.SIGKILL else 128 + signum), stopped
        assert not (RUN / "results.json").exists()
        done = run(["fit", "--ckpt_path", "last"], inside=record_images)
        assert done.code == 0, done.err
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
        # After a SIGKILL the steps since the last save are trained again.
        images = undisturbed[-1] if signum == signal.SIGKILL else recorded_images()
        assert (state_of(), curves(), read_metrics(), images) == undisturbed, step


@pytest.mark.parametrize(("recipe", "moment"), [("tuned", (8, signal.SIGKILL)), ("fast", (15, signal.SIGTERM))])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(
    recipe: str, moment: tuple[int, int], tiny_args: list[str]
) -> None:
    ends_with_the_same_bits(recipe, [moment], tiny_args)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_it_does_so_at_any_moment(recipe: str, tiny_args: list[str]) -> None:
    ends_with_the_same_bits(recipe, MOMENTS, tiny_args)


class BugError(Exception):
    """Something that nobody thought of."""


def raise_bug() -> None:
    raise BugError


@pytest.mark.parametrize(
    ("act", "code"),
    [
        pytest.param(functools.partial(signal.raise_signal, signal.SIGTERM), 143, marks=pytest.mark.slow),
        pytest.param(functools.partial(signal.raise_signal, signal.SIGINT), 130, marks=pytest.mark.slow),
        pytest.param(functools.partial(signal.raise_signal, signal.SIGHUP), 129, marks=pytest.mark.slow),
        (raise_bug, 1),
    ],
    ids=["SIGTERM", "SIGINT", "SIGHUP", "exception"],
)
def test_a_stop_within_this_process(
    act: Callable[[], object], code: int, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", *tiny_args, *EPOCHS, *RECIPES["tuned"], "--checkpoint.every_n_steps", "4"]
    assert main(options) == 0
    undisturbed = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    at_step(9, act, monkeypatch)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    before = signal.getsignal(signal.SIGTERM)
    if code == 1:
        with pytest.raises(BugError):
            main(options)
    else:
        assert main(options) == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(LAST, weights_only=True)["global_step"] == (8 if code == 1 else 9)
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (state_of(), read_metrics()) == undisturbed


def test_a_stopped_run_says_how_it_is_resumed(tiny_args: list[str]) -> None:
    done = stopped_at(8, ["fit", *tiny_args, *EPOCHS])
    assert f"stopped by SIGTERM in epoch 2; --ckpt_path {LAST} resumes it" in done.out
    assert "Traceback" not in done.err
    assert sorted(path.name for path in RUN.iterdir() if "tfevents" not in path.name) == [
        "checkpoints",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
    ]


def test_the_command_that_resumes_can_be_pasted(
    tiny_args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(8, functools.partial(signal.raise_signal, signal.SIGTERM), monkeypatch)
    assert main(["fit", *tiny_args, *EPOCHS, "--trainer.default_root_dir", "my runs"]) == 143
    assert f"--ckpt_path 'my runs/{LAST}' resumes it" in capsys.readouterr().out


def test_a_stopped_run_without_checkpoints_does_not_claim_that_it_can_be_resumed(tiny_args: list[str]) -> None:
    done = stopped_at(8, ["fit", *tiny_args, *EPOCHS, "--trainer.enable_checkpointing", "false"])
    assert "\nstopped by SIGTERM in epoch 2\n" in done.out
    assert not list(Path().rglob("*.ckpt"))


def test_random_numbers_continue(tiny_args: list[str]) -> None:
    # Dropout samples a mask in each step: none may come again, and none may be left out.
    options = ["fit", *tiny_args, *EPOCHS, "--model.net", "tests.helpers.networks.DropoutNet", "--seed_everything", "5"]
    assert run(options).code == 0
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    assert f"--ckpt_path {LAST} --trust_run resumes it" in stopped_at(9, options).out
    assert run(["fit", "--ckpt_path", str(LAST), "--trust_run"]).code == 0
    assert state_of() == undisturbed


WAYS = {
    "max_steps": ["--trainer.max_steps", "16", "--trainer.max_epochs", "-1"],
    "a schedule": [
        *["--trainer.max_steps", "16", "--trainer.max_epochs", "-1"],
        *["--model.schedule", "linear"],
    ],
    "validation in every second epoch": [*EPOCHS, "--trainer.check_val_every_n_epoch", "2"],
    "four of six batches": [*EPOCHS, "--trainer.limit_train_batches", "4"],
    "no validation": [*EPOCHS, "--data.val_size", "0"],
    "BatchNorm": [*EPOCHS, "--model.net", "FastCNN", "--data.image_sizes", "[16]"],
    "another logger": [*EPOCHS, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"],
    "no logger": [*EPOCHS, "--trainer.logger", "false"],
    "early stopping": [
        *["--trainer.max_epochs", "20", "--trainer.callbacks+", "EarlyStopping"],
        *["--trainer.callbacks.monitor", "Accuracy/train", "--trainer.callbacks.patience", "1"],
        *["--trainer.callbacks.mode", "min"],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6, 12, 16])
@pytest.mark.parametrize("way", list(WAYS))
def test_other_ways_to_train_are_resumed_exactly(way: str, step: int, tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, "--no_report", "--data.batch_size", "8", *WAYS[way]]
    assert run(options).code == 0
    undisturbed, metrics = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    stopped = run(options, inside=functools.partial(record_images, step, int(signal.SIGTERM)))
    if stopped.code == 0:
        assert int(undisturbed["step"]) < step, stopped  # it ended before
        return
    assert stopped.code == 143, stopped.err
    writes_elsewhere = ["--trust_run"] if way == "another logger" else []  # or resuming would be refused
    done = run(["fit", "--ckpt_path", "last", *writes_elsewhere])
    assert done.code == 0, done.err
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert state_of() == undisturbed
    ended = read_metrics()
    if (way, step) in (("max_steps", 16), ("a schedule", 16)):  # the epoch that was not over is not counted
        ended["epochs"] += 1
    assert ended == metrics


def test_a_run_resumes_from_a_checkpoint_of_the_users_own(tiny_args: list[str]) -> None:
    own = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "4"]
    own += ["--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"]
    assert run(["fit", *tiny_args, *EPOCHS, *own], inside=record_images).code == 0
    weights, images = state_of()["state_dict"], recorded_images()
    for step in (4, 12):  # within an epoch, and in its last step, whose validation was not made then
        Path("images.jsonl").unlink()
        done = run(["fit", "--ckpt_path", str(RUN / f"checkpoints/step={step}.ckpt")], inside=record_images)
        assert done.code == 0, done.err
        assert state_of()["state_dict"] == weights
        assert recorded_images()[2] == images[2]


@pytest.mark.slow
@pytest.mark.parametrize("logger", [[], ["--trainer.logger", "false"]], ids=["TensorBoard", "no logger"])
def test_an_epoch_that_a_limit_has_cut_is_trained_to_its_end(logger: list[str], tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, *EPOCHS, *logger]
    assert run(options).code == 0
    undisturbed = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    sleeps = functools.partial(before_step, 4, functools.partial(time.sleep, 1.5))
    for name, limit in (("max_steps", "9"), ("max_time", "00:00:00:01")):
        assert run([*options, f"--trainer.{name}", limit], inside=sleeps).code == 0
        num_steps = torch.load(LAST, weights_only=True)["global_step"]
        assert num_steps == 9 if name == "max_steps" else 0 < num_steps <= 4
        no_limit = "-1" if name == "max_steps" else "null"
        done = run(["fit", "--ckpt_path", "lightning_logs/version_0", f"--trainer.{name}={no_limit}"])
        assert done.code == 0, done.err
        assert f"resuming {LAST}: {num_steps // 6} epochs are done ({num_steps} steps)" in done.out
        assert (state_of(), read_metrics()) == undisturbed
        shutil.rmtree("lightning_logs")


@pytest.mark.parametrize(
    ("batches", "options", "expected"),
    [(3, ["--trainer.accumulate_grad_batches", "2"], (0, 4)), (9, ["--trainer.min_steps", "12"], (1, 4))],
    ids=["within a step", "before min_steps"],
)
def test_a_stop_waits_until_the_step_is_done_and_the_rest_of_the_epoch_is_trained(
    batches: int, options: list[str], expected: tuple[int, int], tiny_args: list[str]
) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--data.val_size", "0", *options]
    assert main(options) == 0
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    assert main([*options, *callback("tests.helpers.callbacks.StopsAfter", batches=batches)]) == 0
    loop = torch.load(LAST, weights_only=True)["loops"]["fit_loop"]
    progress = [loop[name]["current"]["processed"] for name in ("epoch_progress", "epoch_loop.batch_progress")]
    assert progress == list(expected)
    assert main(["fit", "--ckpt_path", "last", "--trust_run"]) == 0
    assert state_of() == undisturbed


def test_a_signal_waits_until_gradients_are_used_and_validation_is_over(tiny_args: list[str]) -> None:
    for step, expected in ((3, 4), (5, 6)):
        stopped_at(step, ["fit", *tiny_args, *EPOCHS, "--trainer.accumulate_grad_batches", "4"])
        loop = torch.load(LAST, weights_only=True)["loops"]["fit_loop"]
        # Not in the middle of four; and after the last batch, when the epoch is over.
        assert loop["epoch_loop.batch_progress"]["current"]["processed"] == expected
        assert loop["epoch_progress"]["current"]["processed"] == expected // 6
        shutil.rmtree("lightning_logs")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tiny_args: list[str]) -> None:
    runs = []
    for _ in range(2):
        assert run(["fit", *tiny_args, *RECIPES["tuned"], *EPOCHS]).code == 0
        runs.append((state_of(), curves(), read_metrics()))
        shutil.rmtree("lightning_logs")
    assert runs[0] == runs[1]


@pytest.mark.parametrize("option", [{"every_n_steps": -1}, {"every_n_minutes": -0.5}])
def test_an_option_outside_its_range_is_named(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"`{name}` is {value}: must be at least 0"):
        Saver(**option)


def test_processes_agree_every_ten_steps_however_many_batches_make_a_step() -> None:
    asked: list[int] = []

    def reduce(request: torch.Tensor, **_: Any) -> torch.Tensor:
        asked.append(trainer.global_step)
        return request

    trainer: Any = SimpleNamespace(world_size=2, global_step=0)
    trainer.strategy = SimpleNamespace(root_device="cpu", reduce=reduce)
    saver = Saver()
    for step in range(1, 31):
        trainer.global_step, saver._num_batches = step, 4 * step
        saver._agree(trainer, 0)
    assert asked == [10, 20, 30]


@pytest.mark.filterwarnings("ignore:.*no instructions for bfloat16")
def test_an_average_in_float32_of_weights_in_bfloat16_leaves_the_best_checkpoint(tiny_args: list[str]) -> None:
    options = [*callback("EMAWeightAveraging", decay=0.9), "--trainer.precision", "bf16-true"]
    options += ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *options]) == 0
    assert Path(read_results()["checkpoint"]).name == "best.ckpt"


def test_weights_in_float64_have_an_average_in_float64(tiny_args: list[str]) -> None:
    options = [*callback("EMAWeightAveraging", decay=0.9), "--trainer.precision", "64-true"]
    assert main(["fit", *tiny_args, *FEW_EPOCHS, "--trainer.max_epochs", "1", *options]) == 0
    saved = torch.load(LAST, weights_only=True)
    for part in ("current_model_state", "state_dict"):  # which are swapped for the validation
        weights = saved[part]["net.layers.conv1.weight"]
        assert not torch.equal(weights, weights.float().double()), part


def test_it_saves_every_few_minutes(tiny_args: list[str]) -> None:
    options = ["--checkpoint.every_n_minutes", "0.0000001", "--trainer.max_epochs", "1"]
    done = run(["fit", *tiny_args, *EPOCHS, *options], inside=functools.partial(record_images, 4, int(signal.SIGKILL)))
    assert done.code == -9
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(("seconds", "saved"), [(599, None), (600, 3)])
def test_the_minutes_are_minutes(
    seconds: float, saved: int | None, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, found = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr("cifar_lit.callbacks.saver.time", SimpleNamespace(monotonic=lambda: clock.now))
    at_step(3, lambda: setattr(clock, "now", clock.now + seconds), monkeypatch)
    at_step(5, lambda: found.append(torch.load(LAST)["global_step"] if LAST.exists() else None), monkeypatch)
    options = ["--checkpoint.every_n_minutes", "10", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny_args, *EPOCHS, *options]) == 0
    assert found == [saved]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (callback("ModelCheckpoint", filename="best"), "ModelCheckpoint would overwrite best.ckpt of this run"),
        (callback("ModelCheckpoint", save_last="true"), "ModelCheckpoint would overwrite last.ckpt of this run"),
        (
            callback("OnExceptionCheckpoint", dirpath=str(LAST.parent), filename="last"),
            "OnExceptionCheckpoint would start from what it saved in another run: leave it out, last.ckpt is saved",
        ),
        (
            callback("StochasticWeightAveraging", swa_lrs=0.1, device="cpu"),
            "StochasticWeightAveraging trains a further epoch",
        ),
        (
            callback("tests.helpers.callbacks.Stateful"),
            "a checkpoint holds plain values and tensors, and callbacks.Stateful.deep.0.best is a numpy.float64",
        ),
    ],
    ids=["best", "last", "on exception", "SWA", "state"],
)
def test_a_callback_that_cannot_be_is_refused_before_the_first_step(
    options: list[str], expected: str, tiny_args: list[str], refused: Refused
) -> None:
    code, line = refused(["fit", *tiny_args, *EPOCHS, *options])
    assert code == 2
    assert expected in line
    assert not list(Path().rglob("config.yaml"))
    assert not Path("lightning_logs").exists()


def test_a_state_that_cannot_be_saved_later_leaves_the_earlier_checkpoint(
    tiny_args: list[str], refused: Refused
) -> None:
    options = callback("tests.helpers.callbacks.Stateful", from_epoch=1)
    code, line = refused(["fit", *tiny_args, *EPOCHS, *options])
    assert code == 1
    assert "callbacks.Stateful.deep.0.best is a numpy.float64: return float(x), x.tolist() or str(x)" in line
    assert torch.load(LAST, weights_only=True)["global_step"] == 6
    assert [path.name for path in LAST.parent.iterdir() if path.name.startswith(".")] == []
