"""Real runs in processes of their own, and what can be done to them from inside and from outside.

They are forked from a server that has imported everything, so that one costs a second and not five.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.helpers.processes", "cifar_lit.cli.fit", "cifar_lit.networks.fast", "tensorboard"]
)
SCRIPT = Path(__file__).parents[2] / "scripts" / "fit.py"
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
SECONDS = 120.0  # that a run may take

Inside = Callable[[], object]


@dataclass(frozen=True)
class Done:
    """How a run ended.

    Attributes:
        code: Its exit code; negative is the number of the signal that killed it.
        out: What it printed.
        err: What it printed on standard error.
    """

    code: int
    out: str
    err: str


class Run:
    """A run of the command line beside the test.

    Args:
        args: The arguments of ``cifar-lit``.
        inside: What is done in the process before.
        environment: Variables that it gets.
    """

    def __init__(
        self, args: Sequence[str], *, inside: Inside | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path.cwd()
        environment = {"HOME": os.environ["HOME"], **(environment or {})}
        self.process: BaseProcess = CONTEXT.Process(target=_main, args=(self.folder, list(args), inside, environment))
        self.process.start()

    @property
    def err(self) -> str:
        """What was printed on standard error so far."""
        path = self.folder / "err.txt"
        return path.read_text() if path.exists() else ""

    @property
    def out(self) -> str:
        """What was printed so far."""
        path = self.folder / "out.txt"
        return path.read_text() if path.exists() else ""

    def kill(self, signum: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signum)

    def wait(self, seconds: float = SECONDS) -> Done:
        """Wait for its end."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s: {self.out} {self.err}")
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, self.out, self.err)


def run(args: Sequence[str], *, inside: Inside | None = None, environment: Mapping[str, str] | None = None) -> Done:
    """Run the command line in a process of its own, in the current folder."""
    return Run(args, inside=inside, environment=environment).wait()


def environment(**more: str) -> dict[str, str]:
    """Return the variables for another Python, which imports this package, and not the one that is installed."""
    return {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), **more}


def script(args: Sequence[str], *, seconds: float = 300) -> Done:
    """Run ``scripts/fit.py`` as a user does; several processes of a training start each other in this way."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment(),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _main(folder: Path, args: list[str], inside: Inside | None, environment: dict[str, str]) -> None:
    os.chdir(folder)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is one for several processes, which one that is killed leaves behind
    from cifar_lit.main import main

    if inside is not None:
        inside()
    try:
        sys.exit(main(args))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def before_step(number: int, act: Inside) -> None:
    """Do something in the middle of a step of the training, after its forward pass.

    Args:
        number: The step, counted from 1 since the process began.
        act: What is done.
    """
    from cifar_lit.module import ImageClassifier

    training_step = ImageClassifier.training_step
    count = 0

    def patched(module: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal count
        count += 1
        loss = training_step(module, batch, batch_idx)
        if count == number:
            changed = act()
            if isinstance(changed, float):
                loss = loss * changed
        return loss

    ImageClassifier.training_step = patched  # type: ignore[method-assign,assignment]


def at_step(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of a step of this very process, before its forward pass."""
    from cifar_lit.module import ImageClassifier

    training_step = ImageClassifier.training_step
    count = 0

    def patched(module: ImageClassifier, *args: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == number:
            act()
        return training_step(module, *args)

    monkeypatch.setattr(ImageClassifier, "training_step", patched)


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("evil",)


class Touch:
    """Makes a folder when it is called."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *args: object) -> None:
        Path(self.path).mkdir()


class SignalAt(Callback):
    """Sends a signal to one process of several, in the middle of a step.

    Args:
        step: The step of the training, counted from 1.
        signum: The signal.
        rank: The process.
    """

    def __init__(self, step: int, signum: int, rank: int) -> None:
        self.step, self.signum, self.rank = step, signum, rank

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)


def signal_at(number: int, signum: int) -> Inside:
    """Make what sends a signal to the process itself in the middle of a step."""
    return functools.partial(before_step, number, functools.partial(signal.raise_signal, signum))


def record_images(number: int | None = None, signum: int = 0) -> None:
    """Write down which images each finished step saw, and stop in the middle of a step, if asked."""
    from cifar_lit.callbacks.saver import Saver
    from cifar_lit.data.augment import AugmentParams

    at, on_train_batch_end = AugmentParams.at, Saver.on_train_batch_end
    given: list[int] = []

    def patched_at(params: AugmentParams, index: torch.Tensor) -> Any:
        given[:] = index.tolist()
        return at(params, index)

    def patched_end(saver: Saver, trainer: Any, *args: Any) -> None:
        if not trainer.validating:
            with Path("images.jsonl").open("a") as file:
                file.write(json.dumps([trainer.current_epoch, given]) + "\n")
        on_train_batch_end(saver, trainer, *args)

    AugmentParams.at = patched_at  # type: ignore[method-assign,assignment]
    Saver.on_train_batch_end = patched_end  # type: ignore[method-assign,assignment]
    if number is not None:
        signal_at(number, signum)()


def recorded_images() -> dict[int, list[int]]:
    """Read which images each epoch saw, in their order."""
    epochs: dict[int, list[int]] = {}
    for line in Path("images.jsonl").read_text().splitlines():
        epoch, images = json.loads(line)
        epochs.setdefault(epoch, []).extend(images)
    return epochs


def stopped_at(step: int, args: Sequence[str]) -> Done:
    """Run the command line, with a SIGTERM in a step."""
    done = run(args, inside=functools.partial(record_images, step, int(signal.SIGTERM)))
    assert done.code == 143, done.err
    return done


def limit_files(size: int) -> None:
    """Let no file grow beyond a size, as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """Let the process have this many bytes of memory beyond those that it has."""
    import resource

    size += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def obey_permissions() -> None:
    """Give up root's right to write where the permissions forbid it."""
    import ctypes

    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.syscall(126 if os.uname().machine == "x86_64" else 91, header, data) == 0  # capset: none at all


def digest(value: Any) -> str:
    """Return a hash of all tensors and numbers of a part of a checkpoint, in their order."""
    sums = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            sums.update(part.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, Mapping):
            for key in part:
                sums.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        else:
            sums.update(repr(part).encode())

    add(value)
    return sums.hexdigest()


def state_of(path: Path = LAST) -> dict[str, str]:
    """Return hashes of what a training consists of, from its checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "metrics")
    state = {part: digest(checkpoint[part]) for part in parts if part in checkpoint}
    state["step"] = str(checkpoint["global_step"])
    for name, callback in checkpoint["callbacks"].items():
        if name.startswith("Best"):
            best = Path(callback["best_model_path"]).name, callback["best_model_score"]
            state["best"] = repr(best)
    return state


def curves(folder: Path = Path("lightning_logs/version_0")) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run as TensorBoard shows them; the best accuracy is a point for each end of a training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("best/")]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
