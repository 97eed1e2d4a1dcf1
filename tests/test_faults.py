"""What can go wrong, and what must hold then: each fault is a row, done to a real run in a process of its own.

``pytest tests/test_faults.py -m "slow or not slow" -v`` prints the whole table.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifar_lit.sources.cifar10 import Archive
from tests.conftest import encode, tiny_files, tiny_picture, write_files
from tests.processes import (
    LAST,
    SCRIPT,
    Done,
    Inside,
    Run,
    before_step,
    curves,
    limit_files,
    limit_memory,
    obey_permissions,
    run,
    script,
    signal_at,
    state_of,
    wait_for,
)
from tests.sources.server import Behaviour, serving
from tests.sources.test_cifar10 import pack, small_files
from tests.test_checkpoint import Evil

EARLIER = Path("earlier/lightning_logs/version_0")
BAD = Path("bad.ckpt")
BASE = ["--data.source", "images", "--data.root", "tiny", "--data.val_size", "0.2", "--data.batch_size", "8"]
EPOCHS = ["--trainer.max_epochs", "3", "--no_report"]
Prepare = Callable[[], object]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with tiny pictures and a run on them that has ended."""
    folder = tmp_path_factory.mktemp("faults")
    write_files(folder / "tiny", tiny_files())
    with contextlib.chdir(folder):
        done = run(
            ["fit", *BASE, *EPOCHS, "--trainer.default_root_dir", "earlier"], environment={"HOME": str(folder / "home")}
        )
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(earlier: Path, tmp_path: Path) -> Path:
    """Give a copy of it, which is the current folder."""
    for name in ("tiny", "earlier"):
        shutil.copytree(earlier / name, tmp_path / name)
    return tmp_path


def sums(root: Path) -> dict[str, str]:
    """Sum up all files below a folder."""
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def litter() -> list[str]:
    """Name what no run may leave behind, however it ends."""
    kinds = (".part", ".probe", ".lock")
    found = [path for path in Path().rglob("*") if path.name.endswith(kinds)]
    return [str(path) for path in found if path.parts[0] not in ("data", "home")]  # there a .lock has its place


@dataclass(frozen=True)
class Fault:
    """A row of the table: a fault and what must hold.

    Attributes:
        name: What goes wrong.
        options: Given to ``fit`` behind those of a good run.
        says: What the one line of error must say; nothing where the run must succeed.
        code: The exit code.
        prepare: What is done before.
        inside: What is done in the process of the run.
        after: What must hold then.
        keeps: Whether the run's folder is kept, because something was trained.
    """

    name: str
    options: Sequence[str] = ()
    says: str = ""
    code: int = 2
    prepare: Prepare | None = None
    inside: Inside | None = None
    after: Prepare | None = None
    keeps: bool = False


def change(**parts: Any) -> Prepare:
    """Make what writes the last checkpoint of the earlier run with other parts."""

    def act() -> None:
        checkpoint = torch.load(EARLIER / "checkpoints/last.ckpt", weights_only=True)
        torch.save({**checkpoint, **parts}, BAD)

    return act


def damage(how: Callable[[bytes], bytes]) -> Prepare:
    """Make what writes the last checkpoint of the earlier run with other bytes."""
    return lambda: BAD.write_bytes(how((EARLIER / "checkpoints/last.ckpt").read_bytes()))


def two_classes() -> None:
    damage(bytes)()
    shutil.rmtree("tiny/train/green")
    shutil.rmtree("tiny/test/green")


def flip(content: bytes) -> bytes:
    """Change one bit of the weights."""
    weights = torch.load(io.BytesIO(content), weights_only=True)["state_dict"]["net.layers.conv2.weight"]
    place = content.index(weights.permute(0, 2, 3, 1).contiguous().numpy().tobytes()[:64])
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def not_a_number() -> None:
    checkpoint = torch.load(EARLIER / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.layers.conv1.bias"][0] = float("nan")
    torch.save(checkpoint, BAD)


def raw_weights() -> None:
    torch.save(torch.load(EARLIER / "checkpoints/last.ckpt", weights_only=True)["state_dict"], BAD)


def nothing_ran() -> None:
    assert not Path("evil").exists()


def picture(image: Image.Image, suffix: str = ".png", **options: Any) -> Prepare:
    """Make what puts a picture among those of a class."""

    def act() -> None:
        image.save(Path(f"tiny/train/dark/odd{suffix}"), **options)

    return act


def picture_of(content: bytes, suffix: str = ".jpg") -> Prepare:
    return lambda: Path(f"tiny/train/dark/odd{suffix}").write_bytes(content)


def archive(*members: tuple[str, bytes | str]) -> Prepare:
    """Make what packs the pictures with further members: their bytes, or where a link leads."""

    def act() -> None:
        with tarfile.open("pictures.tar", "w") as tar:
            tar.add("tiny", "tiny")
            for name, content in members:
                member = tarfile.TarInfo(name)
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content
                    tar.addfile(member)
                else:
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    return act


def bomb() -> None:
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in tiny_files().items():
            packed.writestr(name, content)
        packed.writestr("train/dark/bomb.png", bytes(150_000_000))


def nothing_outside() -> None:
    assert not Path("../escaped.png").exists()
    assert not Path("/tmp/escaped.png").exists()


def read_only() -> None:
    Path("lightning_logs").mkdir()
    Path("lightning_logs").chmod(0o555)


def file_there() -> None:
    Path("lightning_logs").write_text("not a folder")


def best_is_kept() -> None:
    """The best checkpoint can be used, and the last one is of before the trouble."""
    for name in ("best", "last"):
        weights = torch.load(LAST.with_name(f"{name}.ckpt"), weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())
    assert run(["test", "lightning_logs/version_0"]).code == 0


def evil_picture() -> bytes:
    """A picture with text inside that looks like code and paths."""
    return encode(tiny_picture("dark", 1), ".jpg") + b"<?php system('mkdir evil'); ?> ../../etc/passwd"


def wide() -> Image.Image:
    return Image.new("L", (9000, 9000))


def animation() -> None:
    frames = [tiny_picture("dark", number).resize((40, 40)) for number in range(3)]
    frames[0].save("tiny/train/dark/odd.webp", save_all=True, append_images=frames[1:])


PICTURE = encode(tiny_picture("dark", 1), ".jpg")
FROM = ["--ckpt_path", str(BAD)]
FAULTS = [
    # Checkpoints.
    Fault("checkpoint: none", FROM, "bad.ckpt: there is no such checkpoint"),
    Fault("checkpoint: empty", FROM, "bad.ckpt is not a checkpoint of this project: it is empty", prepare=BAD.touch),
    Fault(
        "checkpoint: cut off", FROM, "bad.ckpt is damaged or was cut off", prepare=damage(lambda whole: whole[:300_000])
    ),
    Fault("checkpoint: text", FROM, "it is another kind of file", prepare=lambda: BAD.write_text("no checkpoint")),
    Fault(
        "checkpoint: of another project",
        FROM,
        "bad.ckpt is not a checkpoint of this project: its settings are missing",
        prepare=lambda: torch.save({"epoch": 3, "model": {}}, BAD),
    ),
    Fault("checkpoint: weights alone", FROM, "it holds weights alone", prepare=raw_weights),
    Fault("checkpoint: a byte changed", FROM, "bad.ckpt is damaged: the checksum of", prepare=damage(flip)),
    Fault("checkpoint: not a number", FROM, "net.layers.conv1.bias is not a number (NaN)", prepare=not_a_number),
    Fault(
        "checkpoint: runs code",
        FROM,
        "it holds more than plain values, which could run code",
        prepare=lambda: torch.save({"state_dict": Evil()}, BAD),
        after=nothing_ran,
    ),
    Fault("checkpoint: http", ["--ckpt_path", "http://127.0.0.1:1/a.ckpt"], "is a URL: download the checkpoint"),
    Fault(
        "checkpoint: another network",
        [*FROM, "--model.net", "FastCNN"],
        "goes on with the settings of its optimizer, network and data: net",
        prepare=damage(bytes),
    ),
    Fault(
        "checkpoint: another number of classes",
        [*FROM, "--trainer.max_epochs", "4"],
        "classes ['bright', 'dark', 'green'] (asked for: ['bright', 'dark'])",
        prepare=two_classes,
    ),
    Fault(
        "checkpoint: an override beside it",
        [*FROM, "--trainer.max_epochs", "4", "--model.lr", "0.3"],
        "lr 0.01 (asked for: 0.3); give the same, for its run's config.yaml is not beside it",
        prepare=damage(bytes),
    ),
    Fault("checkpoint: last, where there is none", ["--ckpt_path", "last"], "--ckpt_path last: no run in"),
    # Training.
    Fault("loss: not a number", ["--model.lr", "1e20"], "the loss is nan in step 2 of epoch 1", 1, keeps=True),
    Fault(
        "loss: infinite, in the second epoch",
        says="the loss is inf in step 3 of epoch 2: start again with a lower --model.lr, or go on with",
        code=1,
        inside=functools.partial(before_step, 9, functools.partial(float, "inf")),
        after=best_is_kept,
        keeps=True,
    ),
    Fault(
        "memory: too small",
        [
            "--data.source",
            "synthetic",
            "--data.batch_size",
            "10000",
            "--data.val_size",
            "5000",
            "--model.net",
            "FastCNN",
        ],
        "out of memory: give a lower --data.batch_size",
        1,
        inside=functools.partial(limit_memory, 700_000_000),
    ),
    # Folders and disks.
    Fault(
        "folder: read-only", says="can be kept there (Permission denied)", prepare=read_only, inside=obey_permissions
    ),
    Fault("folder: a file in its place", says="no run can be kept there (File exists)", prepare=file_there),
    Fault(
        "disk: full from the start",
        says="a checkpoint of 2,421,968 bytes cannot be written into lightning_logs/version_0 (File too large)",
        inside=functools.partial(limit_files, 500_000),
    ),
    Fault(
        "disk: full while saving",
        says="last.ckpt cannot be saved",
        code=1,
        inside=functools.partial(before_step, 9, functools.partial(limit_files, 200_000)),
        after=best_is_kept,
        keeps=True,
    ),
    # Pictures.
    Fault("picture: zero bytes", says="--data.root tiny: train/dark/odd.jpg is not a picture", prepare=picture_of(b"")),
    Fault("picture: a text", says="odd.jpg is not a picture; mend or remove it", prepare=picture_of(b"no picture")),
    Fault(
        "picture: cut off", says="odd.jpg is broken", prepare=picture_of(encode(tiny_picture("dark", 1), ".jpg")[:400])
    ),
    Fault("picture: 81 million pixels", says="has 81,000,000 pixels, more than 64,000,000", prepare=picture(wide())),
    Fault("picture: CMYK", code=0, prepare=picture(Image.new("CMYK", (50, 20)), ".jpg")),
    Fault("picture: grey", code=0, prepare=picture(Image.new("L", (50, 20)))),
    Fault("picture: 16 bits", code=0, prepare=picture(Image.new("I;16", (50, 20)))),
    Fault("picture: animated", code=0, prepare=animation),
    Fault("picture: code behind it", code=0, prepare=picture_of(evil_picture()), after=nothing_ran),
    # Archives.
    *(
        Fault(
            f"archive: {kind}",
            ["--data.root", "pictures.tar"],
            code=0,
            prepare=archive((name, encode(tiny_picture("dark", 1), ".png"))),
            after=nothing_outside,
        )
        for kind, name in (("../", "../escaped.png"), ("an absolute name", "/tmp/escaped.png"))
    ),
    Fault(
        "archive: a link out of it",
        ["--data.root", "pictures.tar"],
        code=0,
        prepare=archive(("tiny/train/dark/passwd.png", "/etc/passwd")),
    ),
    Fault(
        "archive: a decompression bomb",
        ["--data.root", "bomb.zip"],
        "train/dark/bomb.png has 150,000,000 bytes, more than 100,000,000; remove it",
        prepare=bomb,
    ),
    # Options.
    Fault("option: batch size 0", ["--data.batch_size", "0"], "--data.batch_size is 0: give 1 or more"),
    Fault("option: batch size -4", ["--data.batch_size", "-4"], "--data.batch_size is -4: give 1 or more"),
    Fault("option: batch size above the data", ["--data.batch_size", "61"], "is 61, and there are 48 training images"),
    Fault("option: val size above the data", ["--data.val_size", "61"], "is 61, and there are 60 training images"),
    Fault("option: unknown", ["--model.learning_rate", "1"], "--model.learning_rate"),
    Fault("option: abbreviated", ["--trainer.max_epoch", "1"], "--trainer.max_epoch"),
    Fault("option: 99 devices", ["--trainer.accelerator", "cpu", "--trainer.devices", "99"], "--trainer.devices is 99"),
    Fault("option: validation within an epoch", ["--trainer.val_check_interval", "0.5"], "val_check_interval is 0.5"),
    Fault("option: a save every -1 steps", ["--checkpoint.every_n_steps", "-1"], "--checkpoint.every_n_steps is -1"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault, folder: Path) -> None:
    if fault.prepare is not None:
        fault.prepare()
    before = sums(folder / "earlier")
    done = run(["fit", *BASE, *EPOCHS, *fault.options], inside=fault.inside)
    check(done, fault.code, fault.says)
    if fault.after is not None:
        fault.after()
    assert sums(folder / "earlier") == before
    assert litter() == []
    if fault.code and not fault.keeps:
        assert not list(Path("lightning_logs").glob("*"))


def check(done: Done, code: int, says: str) -> None:
    """Hold the exit code and, of a failure, the one line against what they must be."""
    assert done.code == code, done
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    assert len(errors) == (1 if says else 0), done.err
    assert says in "".join(errors)


@pytest.fixture
def whole(folder: Path) -> dict[str, str]:
    """Give what an undisturbed run ends with."""
    assert run(["fit", *BASE, *EPOCHS]).code == 0
    return state_of()


def goes_on(whole: dict[str, str]) -> None:
    """A run that was stopped ends, once it is taken up, as the undisturbed one did."""
    done = run(["fit", "--ckpt_path", "last"])
    check(done, 0, "")
    assert state_of() == whole
    assert json.loads(Path("lightning_logs/version_0/results.json").read_text())["epochs"] == 3
    assert litter() == []


class BugError(Exception):
    """Something that nobody thought of."""


def raise_bug() -> None:
    raise BugError


@pytest.mark.parametrize(
    "net", ["TutorialCNN", pytest.param("FastCNN", marks=pytest.mark.slow), "tests.test_saver.DropoutNet"]
)
def test_an_exception_in_a_step_saves_once_and_keeps_its_traceback(net: str, folder: Path) -> None:
    options = ["fit", *BASE, *EPOCHS, "--model.net", net]
    assert run(options).code == 0
    whole = state_of()
    shutil.rmtree("lightning_logs")
    done = run(options, inside=functools.partial(before_step, 9, raise_bug))
    assert done.code == 1
    assert "BugError" in done.err
    assert torch.load(LAST, weights_only=True)["global_step"] == 8
    goes_on(whole)


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
    whole = state_of()
    shutil.rmtree("lightning_logs")
    assert run(options, inside=functools.partial(fail_between_steps, 9)).code == 1
    assert torch.load(LAST, weights_only=True)["global_step"] == 8
    goes_on(whole)


@pytest.mark.parametrize("fault", ["disk: full while saving", "loss: infinite, in the second epoch"])
def test_a_run_goes_on_after(fault: str, whole: dict[str, str]) -> None:
    shutil.rmtree("lightning_logs")
    (row,) = [row for row in FAULTS if row.name == fault]
    check(run(["fit", *BASE, *EPOCHS], inside=row.inside), row.code, row.says)
    goes_on(whole)


def test_a_full_disk_while_logging(whole: dict[str, str]) -> None:
    shutil.rmtree("lightning_logs")
    # The events of the graph are more than that already, and what is printed is less.
    events = functools.partial(before_step, 9, functools.partial(limit_files, 5_000))
    done = run(["fit", *BASE, *EPOCHS, "--trainer.enable_checkpointing", "false"], inside=events)
    check(done, 1, "the disk is full (File too large): make room")


def test_two_interrupts_end_it_at_once_and_break_nothing(whole: dict[str, str]) -> None:
    shutil.rmtree("lightning_logs")
    # The second one comes while the first is still waiting for the end of the step.
    twice = functools.partial(before_step, 9, interrupt_twice)
    done = run(["fit", *BASE, *EPOCHS], inside=twice)
    assert done.code == 130
    assert torch.load(LAST, weights_only=True)["global_step"] == 6  # nothing more was saved
    assert "Ctrl-C again ends it at once" in done.err
    Path("lightning_logs/version_0/.lock").unlink()
    goes_on(whole)


def interrupt_twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_signal_before_the_training_ends_it_and_leaves_nothing(folder: Path) -> None:
    started = Run(["fit", *BASE, *EPOCHS], inside=functools.partial(while_decoding, signal.SIGTERM))
    assert started.wait().code == 143
    assert not Path("lightning_logs").exists()


def while_decoding(signum: int) -> None:
    """Send a signal when the pictures are decoded."""
    from cifar_lit.sources.images import Images

    Images._decode = lambda *_: signal.raise_signal(signum)  # type: ignore[assignment,method-assign]


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


def test_a_second_run_into_the_same_place(whole: dict[str, str]) -> None:
    before = sums(Path("lightning_logs/version_0"))
    check(run(["fit", *BASE, *EPOCHS]), 0, "")
    assert sums(Path("lightning_logs/version_0")) == before
    assert state_of(Path("lightning_logs/version_1/checkpoints/last.ckpt")) == whole


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


def test_a_run_is_not_taken_up_while_it_runs(folder: Path) -> None:
    stop = functools.partial(before_step, 8, functools.partial(time.sleep, 60))
    first = Run(["fit", *BASE, *EPOCHS], inside=stop)
    wait_for(LAST.exists)
    second = run(["fit", "--ckpt_path", "last"])
    check(second, 2, "version_0 is being trained in by another process: wait for it, or stop it")
    first.kill(signal.SIGKILL)
    assert first.wait().code == -9


# Downloads.

SMALL = ["--data.source", "cifar10", "--data.root", "data", "--data.val_size", "0", "--data.batch_size", "4"]
WHOLE, ARCHIVE = pack(small_files())


def take_archive(archive: Archive) -> None:
    """Let the small archive take the place of the official one."""
    from cifar_lit.sources.cifar10 import Cifar10
    from cifar_lit.sources.download import download

    Cifar10.__init__.__kwdefaults__.update(archive=archive)  # type: ignore[union-attr]
    assert download.__kwdefaults__ is not None
    download.__kwdefaults__.update(pause_seconds=0.0)
    download.__globals__["BLOCK"] = 1000  # of about 70,000


SMALL_ARCHIVE = functools.partial(take_archive, ARCHIVE)  # packed once: the sum depends on the time


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (lambda whole: Behaviour(whole, statuses=[404] * 9), "answered 404"),
        (lambda whole: Behaviour(whole, statuses=[503] * 99), "answered 503"),
        (lambda whole: Behaviour(whole, cut_at=1000, cuts=99, ranges=False), "the transfer broke off at 1,000 of"),
        (lambda whole: Behaviour(whole[:-100] + bytes(100)), "sent another file (its md5 sum is wrong)"),
    ],
    ids=["not there", "always busy", "short", "wrong sum"],
)
def test_a_download_that_fails(behaviour: Callable[[bytes], Behaviour], says: str, folder: Path) -> None:
    with serving(behaviour(WHOLE)) as url:
        done = run(["fit", *SMALL, "--data.mirror", url], inside=SMALL_ARCHIVE)
        check(done, 1, says)
        assert "--data.source synthetic" in done.err
    with serving(Behaviour(WHOLE)) as url:  # the next start
        check(run(["fit", *SMALL, *EPOCHS, "--data.mirror", url], inside=SMALL_ARCHIVE), 0, "")


def test_no_network_at_all(folder: Path) -> None:
    url = "http://127.0.0.1:9/archive.tar.gz"  # nobody listens
    done = run(["fit", *SMALL, "--data.mirror", url], inside=SMALL_ARCHIVE)
    check(done, 1, "cannot be reached")


def test_two_that_start_at_once_on_an_empty_folder_download_once(folder: Path) -> None:
    behaviour = Behaviour(WHOLE, stall_seconds=0.5)
    with serving(behaviour) as url:
        runs = []
        for number in range(2):
            place = folder / f"process{number}"
            place.mkdir()
            with contextlib.chdir(place):
                options = ["--data.root", str(folder / "data"), "--data.mirror", url]
                runs.append(Run(["fit", *SMALL, *EPOCHS, *options], inside=SMALL_ARCHIVE))
        for started in runs:
            check(started.wait(), 0, "")
    assert len(behaviour.requests) == 1


def kill_in(module: str, name: str, number: int, archive: Archive) -> None:
    """Kill the process when a function is called for the given time."""
    import importlib

    take_archive(archive)
    owner = importlib.import_module(module)
    function = getattr(owner, name)
    count = 0

    def patched(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(owner, name, patched)


def half_a_save() -> None:
    """Kill the process when half of what was decoded is written."""
    save = torch.save

    def patched(value: Any, file: Any) -> None:
        save(value, file)
        if str(file).find("train.pt") >= 0:
            os.truncate(file, Path(file).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = patched  # type: ignore[assignment]


def test_a_kill_in_the_middle_of_a_download(folder: Path) -> None:
    behaviour = Behaviour(WHOLE, stall_seconds=30)
    with serving(behaviour) as url:
        started = Run(["fit", *SMALL, *EPOCHS, "--data.mirror", url], inside=SMALL_ARCHIVE)
        wait_for(lambda: Path("data/cifar.tar.gz.part").exists() and Path("data/cifar.tar.gz.part").stat().st_size)
        started.kill(signal.SIGKILL)
        started.wait()
        behaviour.stall_seconds = 0
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert behaviour.requests[1].startswith("bytes=")  # it went on where it was


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [("cifar_lit.sources.cifar10", "file_md5", 3), ("cifar_lit.sources.cifar10", "extract", 1)],
    ids=["checking what was extracted", "before the extraction"],
)
def test_a_kill_in_the_middle_of_an_extraction(module: str, name: str, number: int, folder: Path) -> None:
    with serving(Behaviour(WHOLE)) as url:
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        assert run(again, inside=functools.partial(kill_in, module, name, number, ARCHIVE)).code == -9
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert not list(Path("data").glob(".*.part"))


def test_a_lost_file_of_the_extracted_archive_is_repaired(folder: Path) -> None:
    with serving(Behaviour(WHOLE)) as url:
        again = ["fit", *SMALL, *EPOCHS, "--data.mirror", url]
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
        Path("data/cifar-10-batches-py/batches.meta").unlink()
        check(run(again, inside=SMALL_ARCHIVE), 0, "")
    assert Path("data/cifar-10-batches-py/batches.meta").is_file()


def test_a_kill_while_the_decoded_pictures_are_written(folder: Path) -> None:
    assert run(["fit", *BASE, *EPOCHS], inside=half_a_save).code == -9
    check(run(["fit", *BASE, *EPOCHS]), 0, "")
    cache = Path(os.environ["HOME"]) / ".cache/cifar_lit"
    assert {path.name for path in cache.glob("*/*")} == {"index.json", "train.pt", "test.pt", ".lock"}


# Many kills, and many processes.


@pytest.mark.slow
def test_twenty_kills_at_random_moments(whole: dict[str, str]) -> None:
    shutil.rmtree("lightning_logs")
    chance = random.Random(4)
    saves = ["--checkpoint.every_n_steps", "1"]
    slow = functools.partial(slow_steps, 0.05)
    started = Run(["fit", *BASE, *EPOCHS, *saves], inside=slow)
    wait_for(LAST.exists)
    kills = 0
    while kills < 20:
        time.sleep(chance.uniform(0, 0.4))
        started.kill(signal.SIGKILL)
        if started.wait().code == 0:  # it came to its end: once more from the start
            assert state_of() == whole
            shutil.rmtree("lightning_logs")
            started = Run(["fit", *BASE, *EPOCHS, *saves], inside=slow)
            wait_for(LAST.exists)
            continue
        kills += 1
        torch.load(LAST, weights_only=True)  # whole at any moment
        started = Run(["fit", "--ckpt_path", "last"], inside=slow)
        wait_for(lambda started=started: "Restored all states" in started.err)  # type: ignore[misc]
    assert started.wait().code == 0
    assert state_of() == whole
    assert litter() == []


def slow_steps(seconds: float) -> None:
    """Let each step take its time, half of it while its checkpoint is written."""
    fsync = os.fsync

    def patched(file: int) -> None:
        time.sleep(seconds)
        fsync(file)

    os.fsync = patched  # type: ignore[assignment]


@pytest.mark.slow
@pytest.mark.realdata
def test_soak(real_images: Path, tmp_path: Path) -> None:
    """Kill and take up a training on real images again and again; another one goes on undisturbed beside it.

    ``CIFAR_LIT_SOAK_MINUTES`` says for how long; without it, it is one minute.
    """
    end = time.monotonic() + 60 * float(os.environ.get("CIFAR_LIT_SOAK_MINUTES", "1"))
    options = ["fit", "--data.source", "images", "--data.root", str(real_images), "--recipe", "tuned"]
    options += ["--trainer.max_epochs", "12", "--checkpoint.every_n_steps", "50", "--no_report"]
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
    """Kill a run and take it up until the time is over, then let it come to its end; gives the signals' names."""
    while time.monotonic() < end:
        time.sleep(chance.uniform(1, 20))
        if not started.process.is_alive():
            break
        signum = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        started.kill(signum)
        code = started.wait().code
        if code == 0:
            break  # it had just come to its end
        assert code == (-9 if signum == signal.SIGKILL else 128 + signum)
        yield signum.name
        started = Run(["fit", "--ckpt_path", "last"])
    check(started.wait(3600), 0, "")


TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


@pytest.mark.slow
@needs_two_cores
def test_two_processes_with_half_the_batch_give_the_weights_of_one(whole: dict[str, str]) -> None:
    done = script([*BASE, *EPOCHS, *TWO, "--data.batch_size", "4"])
    check(done, 0, "")
    assert done.out.count("test accuracy per class") == 1
    one, two = (
        torch.load(f"lightning_logs/version_{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for number in (0, 1)
    )
    for name, weights in one.items():
        assert torch.allclose(weights, two[name], atol=1e-6), name


def signal_at_rank(step: int, signum: int, rank: int) -> list[str]:
    """Give the options that send a signal to one process of several."""
    options = {"step": step, "signum": int(signum), "rank": rank}
    given = [part for name, value in options.items() for part in (f"--trainer.callbacks.{name}", str(value))]
    return ["--trainer.callbacks+", "tests.processes.SignalAt", *given]


@pytest.mark.slow
@needs_two_cores
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_together_and_go_on_exactly(rank: int, folder: Path) -> None:
    both = [*BASE, *EPOCHS, *TWO, "--data.batch_size", "2"]
    check(script(both), 0, "")
    whole = state_of()
    shutil.rmtree("lightning_logs")
    # One of them gets the signal in the third of the twelve steps of the second epoch.
    done = script([*both, *signal_at_rank(15, signal.SIGTERM, rank)])
    assert done.code == 143, done
    loop = torch.load(LAST, weights_only=True)["loops"]["fit_loop"]
    assert loop["epoch_loop.batch_progress"]["current"]["processed"] == 10  # where they next agree
    alone = run(["fit", "--ckpt_path", "last", "--trainer.devices", "1"])
    check(alone, 2, "--trainer.devices: the checkpoint was saved in the middle of an epoch by 2 processes")
    check(script(["--ckpt_path", "last"]), 0, "")
    assert state_of() == whole


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
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        )
        wait_for(lambda: "epoch 12/" in Path("out.txt").read_text())
        began = time.monotonic()
        assert started.wait(60) != 0
        wait_for(lambda: "another process of this training has ended" in Path("out.txt").read_text(), 10)
    assert time.monotonic() - began < 10
    text = Path("out.txt").read_text()
    assert "Traceback" not in text
    if rank:  # the first one says it, and what is left is good
        torch.load(LAST, weights_only=True)


@pytest.mark.slow
def test_three_nodes_count_each_image_once(folder: Path) -> None:
    options = [*BASE, *EPOCHS, "--data.val_size", "13", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    options += ["--trainer.num_nodes", "3", "--trainer.devices", "1"]
    nodes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(3):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "3", "--node_rank", str(rank)]
        torchrun += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
        nodes.append(subprocess.Popen([*torchrun, str(SCRIPT), *options], stdout=subprocess.PIPE, text=True))
    outputs = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0, 0]
    assert sum(text.count("test accuracy per class") for text in outputs) == 1
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    figures = json.loads(Path("lightning_logs/version_0/results.json").read_text())
    done = run(["test", "lightning_logs/version_0"])  # one process
    for name, title in (("Accuracy", "accuracy"), ("Loss", "loss")):
        assert f"{title:<20}{figures[f'{name}/val']:>12.4f}{figures[f'{name}/test']:>12.4f}" in done.out


@pytest.mark.slow
def test_a_slurm_job_is_requeued_and_goes_on(whole: dict[str, str]) -> None:
    shutil.rmtree("lightning_logs")
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
    assert (again["state_dict"], again["step"]) == (whole["state_dict"], whole["step"])


def requeue_and_die(requeued: int, killed: int) -> None:
    """Get the signal that SLURM sends before the time is over, and later the one that ends all."""
    signal_at(requeued, signal.SIGUSR1)()
    signal_at(killed, signal.SIGKILL)()
