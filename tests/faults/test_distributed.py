"""Several processes: they stop together, resume exactly, and count each image once."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.faults import BASE, EARLIER, EPOCHS, check
from tests.helpers.processes import LAST, SCRIPT, environment, run, script, state_of, wait_for
from tests.helpers.runs import read_results

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


@pytest.mark.slow
@needs_two_cores
def test_two_processes_with_half_the_batch_give_the_weights_of_one(folder: Path) -> None:
    done = script([*BASE, *EPOCHS, *TWO, "--data.batch_size", "4"])
    check(done, 0, "")
    assert done.out.count("test accuracy per class") == 1
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (EARLIER / "checkpoints/last.ckpt", LAST))
    for name, weights in one.items():
        assert torch.allclose(weights, two[name], atol=1e-6), name


def signal_at_rank(step: int, signum: int, rank: int) -> list[str]:
    """Return the options that send a signal to one process of several."""
    options = {"step": step, "signum": int(signum), "rank": rank}
    given = [part for name, value in options.items() for part in (f"--trainer.callbacks.{name}", str(value))]
    return ["--trainer.callbacks+", "tests.helpers.processes.SignalAt", *given]


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_together_and_resume_exactly(rank: int, folder: Path) -> None:
    both = [*BASE, *EPOCHS, *TWO, "--data.batch_size", "2"]
    check(script(both), 0, "")
    undisturbed = state_of()
    shutil.rmtree("lightning_logs")
    # One of them gets the signal in the third of the twelve steps of the second epoch.
    done = script([*both, *signal_at_rank(15, signal.SIGTERM, rank)])
    assert done.code == 143, done
    loop = torch.load(LAST, weights_only=True)["loops"]["fit_loop"]
    assert loop["epoch_loop.batch_progress"]["current"]["processed"] == 8  # where they next agree: step 20
    alone = run(["fit", "--ckpt_path", "last", "--trust_run", "--trainer.devices", "1"])
    check(alone, 2, "--trainer.devices: the checkpoint was saved in the middle of an epoch by 2 processes")
    check(script(["--ckpt_path", "last", "--trust_run"]), 0, "")
    assert state_of() == undisturbed


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_within_ten_seconds(rank: int, folder: Path) -> None:
    options = [*BASE, *TWO, "--trainer.max_epochs", "100000", "--data.batch_size", "2"]
    with Path("out.txt").open("w") as out:
        started = subprocess.Popen(
            [sys.executable, str(SCRIPT), *options, *signal_at_rank(150, signal.SIGKILL, rank)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        wait_for(lambda: " 12/100000" in Path("out.txt").read_text())
        began = time.monotonic()
        assert started.wait(60) != 0
        wait_for(lambda: "another process of this training exited" in Path("out.txt").read_text(), 10)
    assert time.monotonic() - began < 10
    text = Path("out.txt").read_text()
    assert "Traceback" not in text
    if rank:  # the first one says it, and what is left is good
        torch.load(LAST, weights_only=True)


def errors_of(page: str) -> list[str]:
    """Return the images and captions of the most confident errors in a report."""
    return re.findall(r"base64,[^\"]*\"|<figcaption>.*?</figcaption>", page[page.index("Most confident errors") :])


@pytest.mark.slow
def test_three_nodes_count_each_image_once(folder: Path) -> None:
    options = [
        *BASE,
        *EPOCHS,
        "--report",
        "--data.val_size",
        "13",
        "--trainer.strategy",
        "ddp",
        "--trainer.accelerator",
        "cpu",
    ]
    options += ["--trainer.num_nodes", "3", "--trainer.devices", "1"]
    nodes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(3):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "3", "--node_rank", str(rank)]
        torchrun += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
        command = [*torchrun, str(SCRIPT), *options]
        nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()))
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0, 0]
    assert sum(text.count("test accuracy per class") for text in outputs) == 1
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    results = read_results()
    assert (results["num_val"], results["num_test"]) == (13, 24)
    assert sum(map(sum, results["Confusion/test"])) == 24
    shutil.copytree("lightning_logs/version_0", "copy")
    done = run(["test", "copy", "--report"])  # one process
    assert done.code == 0, done.err
    alone = read_results(Path("copy"))
    for name in ("Accuracy/val", "Loss/val", "Accuracy/test", "Loss/test", "CalibrationError/test"):
        assert results[name] == pytest.approx(alone[name], rel=1e-5), name
    assert results["Confusion/test"] == alone["Confusion/test"]
    # The report shows images by their position in the test set, so it shows the same.
    pages = [Path(folder, "report.html").read_text() for folder in ("lightning_logs/version_0", "copy")]
    assert pages[0].count("base64,") > 1
    assert errors_of(pages[0]) == errors_of(pages[1])
