"""Stops of all kinds: exceptions, signals, kills, full disks, and several runs at the same moment."""

import contextlib
import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.faults import BASE, EPOCHS, BugError, check, check_resumed, hashes, litter, raise_bug
from tests.helpers.processes import (
    LAST,
    Run,
    before_step,
    curves,
    limit_files,
    run,
    signal_at,
    state_of,
    wait_for,
)
from tests.helpers.runs import read_results, table_of


@pytest.mark.parametrize(
    "net",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("TutorialCNN", "FastCNN")),
        "tests.helpers.networks.DropoutNet",
    ],
)
def test_an_exception_in_a_step_saves_once_and_keeps_its_traceback(net: str, folder: Path) -> None:
    options = ["fit", *BASE, *EPOCHS, "--model.net", net]
    assert run(options).code == 0
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    done = run(options, inside=functools.partial(before_step, 9, raise_bug))
    assert done.code == 1
    assert "BugError" in done.err
    assert torch.load(LAST, weights_only=True)["global_step"] == 8
    check_resumed(undisturbed)


def fail_between_steps(number: int) -> None:
    """Fail after a step, before the next one."""
    from cifar_lit.datamodule import CIFAR10DataModule

    transfer = CIFAR10DataModule.on_after_batch_transfer
    count = 0

    def patched(data: CIFAR10DataModule, batch: Any, dataloader_idx: int) -> Any:
        nonlocal count
        count += isinstance(batch, tuple) and bool(data.trainer and data.trainer.training)
        if count == number:
            raise BugError
        return transfer(data, batch, dataloader_idx)

    CIFAR10DataModule.on_after_batch_transfer = patched  # type: ignore[method-assign,assignment]


@pytest.mark.slow
def test_an_exception_between_two_steps_keeps_the_statistics_of_the_first(folder: Path) -> None:
    options = ["fit", *BASE, *EPOCHS, "--model.net", "FastCNN", "--data.image_sizes", "[16]"]
    assert run(options).code == 0
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    assert run(options, inside=functools.partial(fail_between_steps, 9)).code == 1
    assert torch.load(LAST, weights_only=True)["global_step"] == 8
    check_resumed(undisturbed)


def test_a_full_disk_while_logging(undisturbed: dict[str, str]) -> None:
    # The events of the graph are more than that already, and what is printed is less.
    events = functools.partial(before_step, 9, functools.partial(limit_files, 5_000))
    done = run(["fit", *BASE, *EPOCHS, "--trainer.enable_checkpointing", "false"], inside=events)
    check(done, 1, "the disk is full ([Errno 27] File too large): free some space")


def test_two_interrupts_end_it_at_once_and_break_nothing(undisturbed: dict[str, str]) -> None:
    # The second one comes while the first is still waiting for the end of the step.
    twice = functools.partial(before_step, 9, interrupt_twice)
    done = run(["fit", *BASE, *EPOCHS], inside=twice)
    assert done.code == 130
    assert torch.load(LAST, weights_only=True)["global_step"] == 6  # nothing more was saved
    assert "saving, then stopping; Ctrl-C again stops at once" in done.err
    Path("lightning_logs/version_0/.lock").unlink()
    check_resumed(undisturbed)


def interrupt_twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_signal_before_the_training_ends_it_and_leaves_nothing(folder: Path) -> None:
    started = Run(["fit", *BASE, *EPOCHS], inside=functools.partial(while_decoding, signal.SIGTERM))
    assert started.wait().code == 143
    assert not Path("lightning_logs").exists()


def while_decoding(signum: int) -> None:
    """Send a signal when the images are decoded."""
    from cifar_lit.data.image_folder import ImageFolder

    ImageFolder._decode = lambda *_: signal.raise_signal(signum)  # type: ignore[assignment,method-assign]


def test_another_file_system_for_temporary_files(folder: Path) -> None:
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other file system")
    temporary = place / f"cifar_lit_{os.getpid()}"
    temporary.mkdir()
    try:
        check(run(["fit", *BASE, *EPOCHS], environment={"TMPDIR": str(temporary)}), 0, "")
        assert list(temporary.iterdir()) == []
    finally:
        shutil.rmtree(temporary)


def test_a_second_run_into_the_same_place(undisturbed: dict[str, str]) -> None:
    check(run(["fit", *BASE, *EPOCHS]), 0, "")
    before = hashes(Path("lightning_logs/version_0"))
    check(run(["fit", *BASE, *EPOCHS]), 0, "")
    assert hashes(Path("lightning_logs/version_0")) == before
    assert state_of(Path("lightning_logs/version_1/checkpoints/last.ckpt")) == undisturbed


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(folder: Path) -> None:
    shutil.rmtree(Path(os.environ["HOME"]) / ".cache", ignore_errors=True)
    runs = []
    for number in range(4):  # their outputs go to different places
        place = folder / f"process{number}"
        place.mkdir()
        with contextlib.chdir(place):
            options = ["--data.root", str(folder / "tiny"), "--trainer.default_root_dir", str(folder)]
            runs.append(Run(["fit", *BASE, *EPOCHS, *options]))
    for started in runs:
        check(started.wait(), 0, "")
    folders = sorted(Path("lightning_logs").iterdir())
    assert [path.name for path in folders] == [f"version_{number}" for number in range(4)]
    assert len({state_of(path / "checkpoints/last.ckpt")["state_dict"] for path in folders}) == 1
    assert all((path / "results.json").is_file() for path in folders)


def test_a_run_is_not_resumed_while_it_runs(folder: Path) -> None:
    stop = functools.partial(before_step, 8, functools.partial(time.sleep, 60))
    first = Run(["fit", *BASE, *EPOCHS], inside=stop)
    wait_for(LAST.exists)
    second = run(["fit", "--ckpt_path", "last"])
    check(second, 2, "version_0 is in use by another training: wait for it, or stop it")
    first.kill(signal.SIGKILL)
    assert first.wait().code == -9


# Many kills.


@pytest.mark.slow
def test_twenty_kills_at_random_moments(undisturbed: dict[str, str]) -> None:
    chance = random.Random(4)
    saves = ["--checkpoint.every_n_steps", "1"]
    slow = functools.partial(slow_steps, 0.05)
    started = Run(["fit", *BASE, *EPOCHS, *saves], inside=slow)
    wait_for(LAST.exists)
    kills = 0
    while kills < 20:
        time.sleep(chance.uniform(0, 0.4))
        started.kill(signal.SIGKILL)
        if started.wait().code == 0:  # it ended: once more from the start
            assert state_of() == undisturbed
            shutil.rmtree("lightning_logs")
            started = Run(["fit", *BASE, *EPOCHS, *saves], inside=slow)
            wait_for(LAST.exists)
            continue
        kills += 1
        torch.load(LAST, weights_only=True)  # complete at any moment
        started = Run(["fit", "--ckpt_path", "last"], inside=slow)
        wait_for(lambda started=started: "Restored all states" in started.err)  # type: ignore[misc]
    assert started.wait().code == 0
    assert state_of() == undisturbed
    assert litter() == []


def slow_steps(seconds: float) -> None:
    """Let each write of a file take its time."""
    fsync = os.fsync

    def patched(file: int) -> None:
        time.sleep(seconds)
        fsync(file)

    os.fsync = patched  # type: ignore[assignment]


@pytest.mark.slow
def test_a_slurm_job_is_requeued_and_resumed(undisturbed: dict[str, str]) -> None:
    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
    Path("bin/scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}"}
    options = ["fit", *BASE, *EPOCHS, "--trainer.num_nodes", "1", "--trainer.devices", "1"]
    first = run(options, inside=functools.partial(requeue_and_die, 9, 11), environment=job)
    assert first.code == -9, first
    assert Path("requeued.txt").read_text() == "requeue 77\n"
    check(run(options, environment=job), 0, "")  # the same command, as SLURM starts it
    again = state_of(Path("lightning_logs/version_1/checkpoints/last.ckpt"))
    assert (again["state_dict"], again["step"]) == (undisturbed["state_dict"], undisturbed["step"])
    fitted, results = Path("out.txt").read_text(), read_results(Path("lightning_logs/version_1"))
    assert (results["checkpoint"], results["epochs"]) == ("lightning_logs/version_1/checkpoints/best.ckpt", 3)
    check(run(["test", "lightning_logs/version_1"]), 0, "")  # the best weights, not those of the moment of the requeue
    assert table_of(Path("out.txt").read_text()) == table_of(fitted)


def requeue_and_die(requeued: int, killed: int) -> None:
    """Get the signal that SLURM sends before the time is over, and later the one that ends everything."""
    signal_at(requeued, signal.SIGUSR1)()
    signal_at(killed, signal.SIGKILL)()


@pytest.mark.slow
@pytest.mark.realdata
def test_soak(real_images: Path, tmp_path: Path) -> None:
    """Kill and resume a training on real images again and again, with an undisturbed one beside it.

    ``CIFAR_LIT_SOAK_MINUTES`` says for how long; without it, it is one minute.
    """
    end = time.monotonic() + 60 * float(os.environ.get("CIFAR_LIT_SOAK_MINUTES", "1"))
    options = ["fit", "--data.source", "images", "--data.root", str(real_images), "--recipe", "tuned"]
    options += ["--trainer.precision", "32-true"]  # auto may be settled otherwise while another process computes
    options += ["--data.val_size", "5000", "--trainer.max_epochs", "12"]
    options += ["--checkpoint.every_n_steps", "50", "--no_report"]
    kills: dict[str, int] = {}
    trainings = 0
    while time.monotonic() < end:
        trainings += 1
        places = [tmp_path / f"{name}{trainings}" for name in ("disturbed", "undisturbed")]
        for place in places:
            place.mkdir()
        seed = ["--seed_everything", str(trainings)]
        with contextlib.chdir(places[1]):
            undisturbed = Run([*options, *seed])
        with contextlib.chdir(places[0]):
            disturbed = Run([*options, *seed])
            wait_for(LAST.exists, 600)
            for name in disturb(disturbed, end, random.Random(trainings)):
                kills[name] = kills.get(name, 0) + 1
            disturbed_state, disturbed_curves = state_of(), curves()
        with contextlib.chdir(places[1]):
            check(undisturbed.wait(3600), 0, "")
            assert disturbed_state == state_of()
            assert disturbed_curves == curves()
    print(f"{trainings} trainings, {kills}")
    assert sum(kills.values()) >= 3


def disturb(started: Run, end: float, chance: random.Random) -> Iterator[str]:
    """Kill and resume a run until the time is over, then let it end; yield the names of the signals."""
    while time.monotonic() < end:
        time.sleep(chance.uniform(1, 20))
        if not started.process.is_alive():
            break
        signum = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        started.kill(signum)
        code = started.wait().code
        if code == 0:
            break  # it had just ended
        assert code == (-9 if signum == signal.SIGKILL else 128 + signum)
        yield signum.name
        started = Run(["fit", "--ckpt_path", "last"])
    check(started.wait(3600), 0, "")
