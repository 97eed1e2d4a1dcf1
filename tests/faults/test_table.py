"""What can go wrong, and what must hold then: each fault is a row, done to a real run in a process of its own."""

import functools
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.faults import BASE, EARLIER, EPOCHS, Act, check, check_resumed, hashes, litter
from tests.helpers.images import encode, tiny_files, tiny_image
from tests.helpers.processes import (
    LAST,
    Evil,
    before_step,
    limit_files,
    limit_memory,
    obey_permissions,
    run,
)

BAD = Path("bad.ckpt")


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
    prepare: Act | None = None
    inside: Act | None = None
    after: Act | None = None
    keeps: bool = False


def damage(how: Callable[[bytes], bytes]) -> Act:
    """Return a function that writes the last checkpoint of the earlier run with other bytes."""
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


def non_finite(value: float) -> None:
    checkpoint = torch.load(EARLIER / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.layers.conv1.bias"][0] = value
    torch.save(checkpoint, BAD)


def raw_weights() -> None:
    torch.save(torch.load(EARLIER / "checkpoints/last.ckpt", weights_only=True)["state_dict"], BAD)


def nothing_ran() -> None:
    assert not Path("evil").exists()


def image_of(image: Image.Image, suffix: str = ".png", **options: Any) -> Act:
    """Return a function that puts an image among those of a class."""

    def act() -> None:
        image.save(Path(f"tiny/train/dark/odd{suffix}"), **options)

    return act


def bytes_of(content: bytes, suffix: str = ".jpg") -> Act:
    return lambda: Path(f"tiny/train/dark/odd{suffix}").write_bytes(content)


def archive(*members: tuple[str, bytes | str]) -> Act:
    """Return a function that packs the images with further members: their bytes, or the target of a link.

    In a name ``{cwd}`` is the working folder.
    """

    def act() -> None:
        with tarfile.open("images.tar", "w") as tar:
            tar.add("tiny", "tiny")
            for name, content in members:
                member = tarfile.TarInfo(name.format(cwd=Path.cwd()))
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
    assert not list(Path().rglob("escaped.png"))  # by its absolute name, or beside the cache


def read_only() -> None:
    Path("lightning_logs").mkdir()
    Path("lightning_logs").chmod(0o555)


def file_there() -> None:
    Path("lightning_logs").write_text("not a folder")


def best_is_kept() -> None:
    """The best checkpoint can be used, and the last one is from before the fault."""
    for name in ("best", "last"):
        weights = torch.load(LAST.with_name(f"{name}.ckpt"), weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())
    assert run(["test", "lightning_logs/version_0"]).code == 0


def evil_image() -> bytes:
    """An image with text inside that looks like code and paths."""
    return encode(tiny_image("dark", 1), ".jpg") + b"<?php system('mkdir evil'); ?> ../../etc/passwd"


def wide() -> Image.Image:
    return Image.new("L", (9000, 9000))


def odd_images() -> None:
    for mode, suffix in (("CMYK", "-cmyk.jpg"), ("L", ".png"), ("I;16", "-16.png")):
        image_of(Image.new(mode, (50, 20)), suffix)()
    bytes_of(evil_image())()
    frames = [tiny_image("dark", number).resize((40, 40)) for number in range(3)]
    frames[0].save("tiny/train/dark/odd.webp", save_all=True, append_images=frames[1:])


FROM = ["--ckpt_path", str(BAD)]
FAULTS = [
    # Checkpoints.
    Fault("checkpoint: none", FROM, "bad.ckpt: no such checkpoint"),
    Fault("checkpoint: empty", FROM, "bad.ckpt is not a checkpoint of this project: it is empty", prepare=BAD.touch),
    Fault(
        "checkpoint: truncated",
        FROM,
        "bad.ckpt is damaged or truncated",
        prepare=damage(lambda content: content[:300_000]),
    ),
    Fault("checkpoint: text", FROM, "it is another kind of file", prepare=lambda: BAD.write_text("no checkpoint")),
    Fault(
        "checkpoint: of another project",
        FROM,
        "bad.ckpt is not a checkpoint of this project: its settings are missing",
        prepare=lambda: torch.save({"epoch": 3, "model": {}}, BAD),
    ),
    Fault("checkpoint: only weights", FROM, "it holds only weights", prepare=raw_weights),
    Fault("checkpoint: a byte changed", FROM, "bad.ckpt is damaged: checksum mismatch in", prepare=damage(flip)),
    *(
        Fault(
            f"checkpoint: {value}",
            FROM,
            "bad.ckpt is unusable: net.layers.conv1.bias has non-finite values, because its training diverged",
            prepare=functools.partial(non_finite, value),
        )
        for value in (float("nan"), float("inf"))
    ),
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
        "resumes with its own settings of model and data: net",
        prepare=damage(bytes),
    ),
    Fault(
        "checkpoint: another number of classes",
        [*FROM, "--trainer.max_epochs", "4"],
        "classes ['bright', 'dark', 'green'] (given: ['bright', 'dark'])",
        prepare=two_classes,
    ),
    Fault(
        "checkpoint: an override beside it",
        [*FROM, "--trainer.max_epochs", "4", "--model.lr", "0.3"],
        "lr 0.01 (given: 0.3); give the same; the run's config.yaml is missing",
        prepare=damage(bytes),
    ),
    Fault("checkpoint: last, where there is none", ["--ckpt_path", "last"], "--ckpt_path last: no run in"),
    # Training.
    Fault("loss: NaN", ["--model.lr", "1e20"], "the loss is nan in step 2 of epoch 1", 1, keeps=True),
    Fault(
        "loss: infinite, in the second epoch",
        says="the loss is inf in step 3 of epoch 2, at a learning rate of 0.01: start again with a lower --model.lr, "
        "or resume before that with",
        code=1,
        inside=functools.partial(before_step, 9, functools.partial(float, "inf")),
        after=best_is_kept,
        keeps=True,
    ),
    Fault(
        "memory: too small",
        [
            *["--data.source", "synthetic", "--data.val_size", "5000"],
            *["--data.batch_size", "10000", "--model.net", "FastCNN"],
        ],
        "out of memory: reduce --data.batch_size",
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
        says="a checkpoint of 2,421,968 bytes cannot be written to lightning_logs/version_0 (File too large)",
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
    # Images.
    Fault("image: zero bytes", says="--data.root tiny: train/dark/odd.jpg is not an image", prepare=bytes_of(b"")),
    Fault("image: a text", says="odd.jpg is not an image; repair or remove it", prepare=bytes_of(b"not an image")),
    Fault("image: truncated", says="odd.jpg is broken", prepare=bytes_of(encode(tiny_image("dark", 1), ".jpg")[:400])),
    Fault("image: 81 million pixels", says="has 81,000,000 pixels, more than 64,000,000", prepare=image_of(wide())),
    Fault("image: CMYK, grey, 16 bits, animated, code behind it", code=0, prepare=odd_images, after=nothing_ran),
    # Archives.
    Fault(
        "archive: ../, an absolute name, a link out of it",
        ["--data.root", "images.tar"],
        code=0,
        prepare=archive(
            *((name, encode(tiny_image("dark", 1), ".png")) for name in ("../escaped.png", "{cwd}/escaped.png")),
            ("tiny/train/dark/passwd.png", "/etc/passwd"),
        ),
        after=nothing_outside,
    ),
    Fault(
        "archive: a decompression bomb",
        ["--data.root", "bomb.zip"],
        "bomb.zip unpacks to 150,",
        prepare=bomb,
    ),
    # Options.
    Fault("option: batch size 0", ["--data.batch_size", "0"], "--data.batch_size is 0: must be at least 1"),
    Fault("option: batch size -4", ["--data.batch_size", "-4"], "--data.batch_size is -4: must be at least 1"),
    Fault("option: batch size above the data", ["--data.batch_size", "61"], "is 61, and there are 48 training images"),
    Fault("option: val size above the data", ["--data.val_size", "61"], "is 61, and there are 60 training images"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault, folder: Path) -> None:
    if fault.prepare is not None:
        fault.prepare()
    before = hashes(folder / "earlier")
    done = run(["fit", *BASE, *EPOCHS, *fault.options], inside=fault.inside)
    check(done, fault.code, fault.says)
    if fault.after is not None:
        fault.after()
    assert hashes(folder / "earlier") == before
    assert litter() == []
    if fault.code and not fault.keeps:
        assert not list(Path("lightning_logs").glob("*"))


@pytest.mark.parametrize("name", ["disk: full while saving", "loss: infinite, in the second epoch"])
def test_a_run_is_resumed_after(name: str, undisturbed: dict[str, str]) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == name]
    check(run(["fit", *BASE, *EPOCHS], inside=fault.inside), fault.code, fault.says)
    check_resumed(undisturbed)
