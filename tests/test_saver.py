"""A training that was stopped and taken up ends with the bits of one that was not."""

import errno
import functools
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_lit.cli import main
from cifar_lit.loader import BatchLoader
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from cifar_lit.runs import RunFolder
from cifar_lit.saver import Saver
from tests.processes import LAST, Done, before_step, curves, record_images, run, state_of

Refused = Callable[[list[str]], tuple[int, str]]
RUN = Path("lightning_logs/version_0")
STEPS_PER_EPOCH = 6  # 48 images in batches of 8
EPOCHS = ["--trainer.max_epochs", "3", "--data.batch_size", "8", "--no_report"]
RECIPES = {
    "tutorial": ["--model.lr", "0.02"],
    # Its average of the weights, schedule, momentum, Muon, crops and mirror images.
    "tuned": ["--recipe", "tuned", "--model.schedule", "linear"],
    # Its growing images, whitening and alternating mirror images; batches are put together from two.
    "fast": ["--recipe", "fast", "--trainer.accumulate_grad_batches", "2", "--data.image_sizes", "[16,24]"],
}
MOMENTS: list[tuple[int, int]] = [
    (1, signal.SIGTERM),  # in the first step of all
    (4, signal.SIGINT),
    (6, signal.SIGTERM),  # in the last step of an epoch
    (8, signal.SIGKILL),  # nothing can be saved: the last save was at step 6 or 8
    (15, signal.SIGTERM),
    (18, signal.SIGTERM),  # in the last step of the last epoch
]


def figures(folder: Path = RUN) -> dict[str, float]:
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if "/" in name or name == "epochs"}


def seen() -> dict[int, list[int]]:
    """Collect the images that each epoch saw, in their order."""
    epochs: dict[int, list[int]] = defaultdict(list)
    for line in Path("images.jsonl").read_text().splitlines():
        epoch, images = json.loads(line)
        epochs[epoch] += images
    return epochs


def ends_with_the_same_bits(recipe: str, moments: list[tuple[int, int]], tiny_args: list[str]) -> None:
    """Stop a run at each of the moments, take it up, and compare all that it ends with."""
    options = [*tiny_args, "--data.val_size", "0.2", *RECIPES[recipe], *EPOCHS]
    saves = ["--checkpoint.every_n_steps", "1" if recipe == "fast" else "2"]
    assert run(["fit", *options, *saves], inside=record_images).code == 0
    whole, whole_curves, whole_figures, whole_seen = state_of(), curves(), figures(), seen()
    assert [sorted(whole_seen[epoch]) for epoch in range(3)] == [list(range(48))] * 3
    for step, signum in moments:
        shutil.rmtree("lightning_logs")
        Path("images.jsonl").unlink()
        stopped = run(["fit", *options, *saves], inside=functools.partial(record_images, step, signum))
        assert stopped.code == (-9 if signum == signal.SIGKILL else 128 + signum), stopped
        assert not (RUN / "results.json").exists()
        done = run(["fit", "--ckpt_path", "last"], inside=record_images)
        assert done.code == 0, done.err
        assert state_of() == whole, step
        assert figures() == whole_figures
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
        assert curves() == whole_curves
        if signum != signal.SIGKILL:
            assert seen() == whole_seen


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_run_that_was_stopped_and_taken_up_ends_with_the_same_bits(recipe: str, tiny_args: list[str]) -> None:
    moments: list[tuple[int, int]] = [(8, signal.SIGKILL), (15, signal.SIGTERM)]
    ends_with_the_same_bits(recipe, moments[recipe == "fast" :], tiny_args)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_it_does_so_at_any_moment(recipe: str, tiny_args: list[str]) -> None:
    ends_with_the_same_bits(recipe, MOMENTS, tiny_args)


def at_step(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of a step of this very process."""
    training_step = ImageClassifier.training_step
    count = 0

    def patched(module: ImageClassifier, *args: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == number:
            act()
        return training_step(module, *args)

    monkeypatch.setattr(ImageClassifier, "training_step", patched)


class BugError(Exception):
    """Something that nobody thought of."""


def raise_bug() -> None:
    raise BugError


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (functools.partial(signal.raise_signal, signal.SIGTERM), 143),
        (functools.partial(signal.raise_signal, signal.SIGINT), 130),
        (raise_bug, 1),
    ],
    ids=["SIGTERM", "SIGINT", "exception"],
)
def test_a_stop_within_this_process(
    act: Callable[[], object], code: int, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--recipe", "tuned", "--checkpoint.every_n_steps", "4"]
    main(options)
    whole, whole_figures = state_of(), figures()
    shutil.rmtree("lightning_logs")
    at_step(9, act, monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BugError if code == 1 else SystemExit) as stopped:
        main(options)
    if isinstance(stopped.value, SystemExit):
        assert stopped.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(LAST, weights_only=True)["global_step"] == (8 if code == 1 else 9)
    main(["fit", "--ckpt_path", "last"])
    assert state_of() == whole
    assert figures() == whole_figures


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: give a lower --data.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough"), "out of memory"),
        (RuntimeError("could not create a primitive"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("[/third_party/gloo/pair.cc:561] Connection closed"), "another process of this training has"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full (No space left on device): make room"),
    ],
    ids=["CUDA memory", "CPU memory", "oneDNN memory", "C++ memory", "lost process", "disk"],
)
def test_what_the_machine_could_not_do_is_said_in_one_line(
    error: Exception, expected: str, tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    at_step(3, fail, monkeypatch)
    code, line = refused(["fit", *tiny_args, *EPOCHS])
    assert code == 1
    assert expected in line


def test_a_loss_that_is_no_number_stops_it_before_the_weights_are_kept(tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, *EPOCHS, "--model.lr", "1e20"])
    assert (code, "the loss is nan in step 2 of epoch 1" in line) == (1, True)
    assert not LAST.exists()


def test_weights_that_are_no_numbers_are_not_kept(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(saver: Saver, trainer: Any, module: ImageClassifier) -> None:
        next(module.parameters()).data.fill_(float("inf"))
        save(saver, trainer, module)

    save = Saver._save
    monkeypatch.setattr(Saver, "_save", spoil)
    code, line = refused(["fit", *tiny_args, *EPOCHS])
    assert code == 1
    assert "net.layers.conv1.weight has values that are not finite in epoch 1" in line
    assert not LAST.exists()


def test_a_folder_that_cannot_be_had_is_named(tiny_args: list[str], refused: Refused) -> None:
    Path("lightning_logs").write_text("not a folder")
    for options in ([], ["--trainer.logger", "false"]):
        code, line = refused(["fit", *tiny_args, *EPOCHS, *options])
        assert (code, "no run can be kept there (File exists)" in line) == (2, True)
    csv = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "."]
    code, line = refused(["fit", *tiny_args, *EPOCHS, *csv, "--trainer.default_root_dir", "lightning_logs"])
    assert (code, "it cannot be made (File exists)" in line) == (2, True)
    code, line = refused(["fit", *tiny_args, *EPOCHS, "--ckpt_path", "last"])
    assert (code, "--ckpt_path last: no run in lightning_logs" in line) == (2, True)
    Path("last.yaml").write_text("ckpt_path: last\n")
    code, line = refused(["fit", *tiny_args, *EPOCHS, "--config", "last.yaml"])
    assert (code, "--ckpt_path last: give that on the command line" in line) == (2, True)


def test_a_folder_in_use_and_a_full_disk(tiny_root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder()
    first, second = folder.create(Path()), RunFolder().create(Path())
    assert (first.name, second.name) == ("version_0", "version_1")
    with pytest.raises(ValueError, match="is being trained in by another process: wait for it, or stop it"):
        RunFolder().reopen(first)
    folder.check_space(3_000_000)

    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=r"5 bytes cannot be written into .* \(No space left on device\); make room"):
        folder.check_space(5)
    folder.close(keep=False)
    assert not first.exists()


def stopped_at(step: int, tiny_args: list[str], *options: str) -> Done:
    """Train for three epochs, but for a SIGTERM in one step."""
    done = run(
        ["fit", *tiny_args, *EPOCHS, *options], inside=functools.partial(record_images, step, int(signal.SIGTERM))
    )
    assert done.code == 143, done.err
    return done


def test_a_stopped_run_says_how_it_goes_on(tiny_args: list[str]) -> None:
    done = stopped_at(8, tiny_args)
    assert f"stopped by SIGTERM in epoch 2; --ckpt_path {LAST} goes on" in done.out
    assert "Traceback" not in done.err
    assert sorted(path.name for path in RUN.iterdir() if "tfevents" not in path.name) == [
        "checkpoints",
        "config.yaml",
        "hparams.yaml",
    ]


def test_the_numbers_that_chance_gives_go_on(tiny_args: list[str]) -> None:
    # A network that draws in each step: its masks must not come again, and none may be left out.
    options = ["--model.net", "tests.test_saver.DropoutNet", "--seed_everything", "5"]
    assert run(["fit", *tiny_args, *EPOCHS, *options]).code == 0
    whole = state_of()
    shutil.rmtree("lightning_logs")
    stopped_at(9, tiny_args, *options)
    assert run(["fit", "--ckpt_path", str(LAST)]).code == 0
    assert state_of() == whole


def test_a_run_that_was_moved_knows_its_best(tiny_args: list[str], tmp_path: Path) -> None:
    assert run(["fit", *tiny_args, *EPOCHS]).code == 0
    whole, whole_figures = state_of(), figures()
    shutil.rmtree("lightning_logs")
    stopped_at(14, tiny_args)
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    RUN.rename(moved)
    done = run(["fit", "--ckpt_path", str(moved / "checkpoints/last.ckpt")])
    assert done.code == 0, done.err
    assert state_of(moved / "checkpoints/last.ckpt") == whole
    assert figures(moved) == whole_figures


@pytest.mark.parametrize("step", [8, 12])
def test_a_checkpoint_away_from_its_run_goes_on_in_a_new_folder(step: int, tiny_args: list[str]) -> None:
    assert run(["fit", *tiny_args, *EPOCHS]).code == 0
    whole, whole_figures = state_of(), figures()
    shutil.rmtree("lightning_logs")
    stopped_at(step, tiny_args)
    LAST.rename("kept.ckpt")
    done = run(["fit", *tiny_args, *EPOCHS, "--ckpt_path", "kept.ckpt"])
    assert done.code == 0, done.err
    again = Path("lightning_logs/version_1")
    assert state_of(again / "checkpoints/last.ckpt") == whole
    assert figures(again) == whole_figures


WAYS = {
    "max_steps": ["--trainer.max_steps", "16", "--trainer.max_epochs", "-1"],
    "a schedule": [
        "--trainer.max_steps",
        "16",
        "--trainer.max_epochs",
        "-1",
        "--model.schedule",
        "linear",
    ],
    "validation in every second epoch": [*EPOCHS, "--trainer.check_val_every_n_epoch", "2"],
    "four of six batches": [*EPOCHS, "--trainer.limit_train_batches", "4"],
    "no validation": [*EPOCHS, "--data.val_size", "0"],
    "BatchNorm": [*EPOCHS, "--model.net", "FastCNN", "--data.image_sizes", "[16]"],
    "another logger": [*EPOCHS, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"],
    "early stopping": [
        *["--trainer.max_epochs", "20", "--trainer.callbacks+", "EarlyStopping"],
        *["--trainer.callbacks.monitor", "Accuracy/train", "--trainer.callbacks.patience", "1"],
        *["--trainer.callbacks.mode", "min"],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6, 12, 16])
@pytest.mark.parametrize("way", list(WAYS))
def test_other_ways_to_train_go_on_exactly(way: str, step: int, tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, "--no_report", "--data.batch_size", "8", *WAYS[way]]
    root = Path("csv/lightning_logs" if way == "another logger" else "lightning_logs")
    assert run(options).code == 0
    whole, whole_figures = state_of(root / "version_0/checkpoints/last.ckpt"), figures(root / "version_0")
    shutil.rmtree(root)
    stopped = run(options, inside=functools.partial(record_images, step, int(signal.SIGTERM)))
    if stopped.code == 0:
        assert int(whole["step"]) < step, stopped  # it ended before
        return
    assert stopped.code == 143, stopped.err
    last = root / "version_0/checkpoints/last.ckpt"
    done = run([*options, "--ckpt_path", str(last)] if way == "another logger" else ["fit", "--ckpt_path", "last"])
    assert done.code == 0, done.err
    end = sorted(root.iterdir())[-1]
    assert state_of(end / "checkpoints/last.ckpt") == whole
    ended = figures(end)
    if (way, step) in (("max_steps", 16), ("a schedule", 16)):  # the epoch that was not over is not counted
        ended["epochs"] += 1
    assert ended == whole_figures


def test_a_run_goes_on_from_a_checkpoint_of_the_users_own(tiny_args: list[str]) -> None:
    own = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "4"]
    own += ["--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"]
    options = ["fit", *tiny_args, *EPOCHS, *own]
    assert run(options, inside=record_images).code == 0
    whole, whole_seen = state_of(), seen()
    for step in (4, 12):  # within an epoch, and in its last step, whose validation was not made then
        Path("images.jsonl").unlink()
        done = run(["fit", "--ckpt_path", str(RUN / f"checkpoints/step={step}.ckpt")], inside=record_images)
        assert done.code == 0, done.err
        assert state_of()["state_dict"] == whole["state_dict"]
        assert seen()[2] == whole_seen[2]


def test_an_epoch_of_another_length_is_not_taken_up_in_its_middle(tiny_args: list[str]) -> None:
    stopped_at(3, tiny_args)
    done = run(["fit", "--ckpt_path", "last", "--trainer.limit_train_batches", "5"])
    assert done.code == 2
    assert "saved in the middle of an epoch of 6 batches, and there are 5: give the same" in done.err


def test_more_epochs_than_it_began_with(tiny_args: list[str]) -> None:
    assert run(["fit", *tiny_args, *EPOCHS, "--trainer.max_epochs", "4"]).code == 0
    whole, whole_curves = state_of(), curves()
    shutil.rmtree("lightning_logs")
    assert run(["fit", *tiny_args, *EPOCHS]).code == 0
    done = run(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert done.code == 0, done.err
    assert "4 epochs in" in done.out
    assert state_of()["state_dict"] == whole["state_dict"]
    assert curves() == whole_curves
    again = run(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "4"])
    assert again.code == 2
    assert "--trainer.max_epochs is 4, and lightning_logs/version_0/checkpoints/last.ckpt has 4 epochs" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("logger", [[], ["--trainer.logger", "false"]], ids=["TensorBoard", "no logger"])
def test_an_epoch_that_a_limit_has_cut_is_trained_to_its_end(logger: list[str], tiny_args: list[str]) -> None:
    options = ["fit", *tiny_args, *EPOCHS, *logger]
    assert run(options).code == 0
    whole, whole_figures = state_of(), figures()
    shutil.rmtree("lightning_logs")
    sleeps = functools.partial(before_step, 4, functools.partial(time.sleep, 1.5))
    for name, limit in (("max_steps", "9"), ("max_time", "00:00:00:01")):
        assert run([*options, f"--trainer.{name}", limit], inside=sleeps).code == 0
        num_steps = torch.load(LAST, weights_only=True)["global_step"]
        assert num_steps == 9 if name == "max_steps" else 0 < num_steps <= 4
        no_limit = "-1" if name == "max_steps" else "null"
        done = run(["fit", "--ckpt_path", "lightning_logs/version_0", f"--trainer.{name}={no_limit}"])
        assert done.code == 0, done.err
        assert f"going on with {LAST}: {num_steps // 6} epochs and {num_steps} steps are behind it" in done.out
        assert state_of() == whole
        assert figures() == whole_figures
        shutil.rmtree("lightning_logs")


def test_a_run_that_was_killed_before_its_test_is_tested(tiny_args: list[str]) -> None:
    assert run(["fit", *tiny_args, *EPOCHS]).code == 0
    whole = figures()
    (RUN / "results.json").unlink()
    done = run(["fit", "--ckpt_path", "last"])
    assert done.code == 0, done.err
    assert figures() == whole


def test_a_signal_waits_until_gradients_are_used_and_validation_is_over(tiny_args: list[str]) -> None:
    for step, expected in ((3, 4), (5, 6)):
        stopped_at(step, tiny_args, "--trainer.accumulate_grad_batches", "4")
        loop = torch.load(LAST, weights_only=True)["loops"]["fit_loop"]
        # Not in the middle of four; and after the last batch, when the epoch is over.
        assert loop["epoch_loop.batch_progress"]["current"]["processed"] == expected
        assert loop["epoch_progress"]["current"]["processed"] == expected // 6
        shutil.rmtree("lightning_logs")


def test_the_same_seed_gives_the_same_bits(tiny_args: list[str]) -> None:
    states = []
    for _ in range(2):
        assert run(["fit", *tiny_args, *RECIPES["tuned"], *EPOCHS]).code == 0
        states.append((state_of(), curves(), figures()))
        shutil.rmtree("lightning_logs")
    assert states[0] == states[1]


def test_a_loader_begins_where_it_is_told_once() -> None:
    loader = BatchLoader(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10), batch_size=4, shuffle=True)
    whole = [labels.tolist() for _, labels in loader]
    assert loader.state_dict() == {"num_batches": 0}  # the epoch is over
    next(iter(loader))
    assert loader.state_dict() == {"num_batches": 1}
    loader.load_state_dict({"num_batches": 1})
    assert [labels.tolist() for _, labels in loader] == whole[1:]
    assert [labels.tolist() for _, labels in loader] == whole
    assert len(loader) == 3


@pytest.mark.parametrize("option", [{"every_n_steps": -1}, {"every_n_minutes": -0.5}])
def test_an_option_outside_its_range_is_named(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"--checkpoint.{name} is -"):
        Saver(**option)


def test_it_saves_every_few_minutes(tiny_args: list[str]) -> None:
    options = ["--checkpoint.every_n_minutes", "0.0000001", "--trainer.max_epochs", "1"]
    done = run(["fit", *tiny_args, *EPOCHS, *options], inside=functools.partial(record_images, 4, int(signal.SIGKILL)))
    assert done.code == -9
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


class DropoutNet(TutorialCNN):
    """Drops inputs at random."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(images, 0.3, self.training))
