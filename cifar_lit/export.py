"""Run -> a file for elsewhere, checked against the model: ``python scripts/export.py RUN --to onnx``."""

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lit.card import card_fingerprint, fingerprint, write_card
from cifar_lit.checkpoint import find_checkpoint, hyper_parameters, load_checkpoint
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import CommandParser, import_extra
from cifar_lit.pretrained import write_pretrained
from cifar_lit.results import load_results, shorten
from cifar_lit.runs import run_of
from cifar_lit.sources.synthetic import Synthetic

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
"""What a model can be exported to, and what has to be installed for it."""
NUM_CHECKED = 1000
"""Images that a file is held against the model with."""
TOLERANCE = 1e-4
"""How far a logit may be off, as a share of the largest one (or of 1, where that is smaller)."""
BATCH_SIZE = 100
EXAMPLES = """
python scripts/export.py lightning_logs/version_0 --to onnx
python scripts/export.py lightning_logs/version_0 --to onnx pt2 safetensors
python scripts/export.py lightning_logs/version_0 --to onnx --input float
python scripts/export.py lightning_logs/version_0 --to onnx --benchmark
"""
Runs = Callable[[Tensor], Tensor]
"""What computes logits ``(N, num_classes)`` from images ``(N, 3, 32, 32)``."""


class FromBytes(nn.Module):
    """A model that takes images as bytes.

    Args:
        model: What takes them as numbers in [0, 1].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of ``(N, 3, 32, 32)``, uint8."""
        logits: Tensor = self.model(images.to(torch.float32) / 255)
        return logits


def taking(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Give the model that takes images of a type: uint8 or float32."""
    return FromBytes(model) if dtype == torch.uint8 else model


def write_pt2(network: nn.Module, example: Tensor, classes: Sequence[str], path: Path) -> Runs:
    """Write a program of ``torch.export``, for any batch size.

    Args:
        network: Images -> logits, in evaluation mode.
        example: Two images.
        classes: Names of the classes, which are kept in the file as ``classes.json``.
        path: The file.

    Returns:
        What the file computes.
    """
    with path.open("wb") as file:
        torch.export.save(_trace(network, example), file, extra_files={"classes.json": json.dumps(list(classes))})
    with path.open("rb") as file:
        return torch.export.load(file).module()


def write_onnx(network: nn.Module, example: Tensor, classes: Sequence[str], path: Path) -> Runs:
    """Write an ONNX file, with PyTorch's own exporter, for any batch size.

    Args:
        network: Images -> logits, in evaluation mode.
        example: Two images.
        classes: Names of the classes, which are kept in the file's metadata as JSON, under ``classes``.
        path: The file.

    Returns:
        What onnxruntime makes of the file, on the CPU.
    """
    program = torch.onnx.export(
        _trace(network, example), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(list(classes))
    program.save(path)
    session = import_extra("onnxruntime", extra="export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _trace(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the folders of this machine
    return program


def check(name: str, found: Tensor, expected: Tensor) -> float:
    """Hold what a file computes against what the model does.

    Args:
        name: The file's name.
        found: The file's logits, ``(N, num_classes)``.
        expected: The model's.

    Returns:
        The largest difference.

    Raises:
        RuntimeError: If it is above the tolerance, or if a label is another.
    """
    difference = float((found - expected).abs().max())
    num_other = int((found.argmax(1) != expected.argmax(1)).sum())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if num_other or not difference <= allowed:
        raise RuntimeError(
            f"{name} is not kept: it gives {num_other} of {len(expected):,} images another label, and logits that "
            f"differ by up to {difference:.2g} (allowed: {allowed:.2g})"
        )
    return difference


@torch.inference_mode()
def run_over(runs: Runs, images: Tensor) -> Tensor:
    """Compute logits batch by batch.

    Args:
        runs: What computes them.
        images: ``(N, 3, 32, 32)``.

    Returns:
        ``(N, num_classes)``.
    """
    return torch.cat([runs(batch) for batch in torch.split(images, BATCH_SIZE)])


def images_per_second(computed_by: Mapping[str, Runs], images: Tensor, *, repeats: int = 9) -> dict[str, float]:
    """Measure speeds, in turns, after a first round that does not count.

    Args:
        computed_by: What computes logits, by its name.
        images: ``(N, 3, 32, 32)``.
        repeats: Rounds, of which the median counts.

    Returns:
        Images per second of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in computed_by}
    for _ in range(repeats + 1):
        for name, runs in computed_by.items():
            start = time.perf_counter()
            run_over(runs, images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / statistics.median(rounds[1:]) for name, rounds in seconds.items()}


def images_to_check(data: Mapping[str, Any]) -> tuple[Tensor, str]:
    """Find images to compare with: those that were held out where there are any, else some of the training's.

    Args:
        data: The hyper-parameters of the run's data; empty where they are not known.

    Returns:
        ``(NUM_CHECKED, 3, 32, 32)``, uint8, and what they are. Drawn ones stand in for what is not at hand.
    """
    own, parts = torch.zeros(0, 3, 32, 32, dtype=torch.uint8), []
    if data:
        try:
            datamodule = CIFAR10DataModule(**data)
            datamodule.setup("fit")  # without prepare_data: no download for this
            split = datamodule.val or datamodule.train
            assert split is not None
            places = torch.linspace(0, len(split.labels) - 1, min(NUM_CHECKED, len(split.labels))).long()
            own = split.images[places]
            parts.append(f"{len(own):,} images of the run's own data")
        except (ValueError, RuntimeError, OSError) as error:
            print(f"the run's own images are not at hand ({error})")
    num_drawn = NUM_CHECKED - len(own)
    if num_drawn:
        parts.append(f"{num_drawn:,} images that are drawn by code")
        own = torch.cat([own, Synthetic(num_test=NUM_CHECKED).load("test").images[:num_drawn]])
    return own, " and ".join(parts)


def export(model: ImageClassifier, kind: str, images: Tensor, folder: Path) -> tuple[float, Runs]:
    """Write a model into ``model.KIND``, if that computes the same.

    Args:
        model: The model, in evaluation mode.
        kind: ``onnx``, ``pt2`` or ``safetensors``.
        images: ``(N, 3, 32, 32)``, what it is checked with: uint8 for a file that takes bytes, float for one that takes
            numbers in [0, 1].
        folder: Where; it must be there.

    Returns:
        The largest difference of a logit, and what the file computes.

    Raises:
        RuntimeError: If it computes something else; then nothing was written.
    """
    network = taking(images.dtype, model)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as place, _warnings_left_out():
        part = Path(place, f"model.{kind}")
        if kind == "safetensors":
            write_pretrained(part, model.hparams, model.state_dict())
            again = ImageClassifier.from_run(part)
            runs: Runs = taking(images.dtype, again)
        else:
            write = write_onnx if kind == "onnx" else write_pt2
            runs = write(network, torch.zeros_like(images[:2]), model.classes, part)  # which is kept in a pt2
        difference = check(part.name, run_over(runs, images), run_over(network, images))
        for file in Path(place).iterdir():
            file.replace(folder / file.name)
    return difference, runs


@contextlib.contextmanager
def _warnings_left_out() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")  # which misses torchvision, whose operators no network here has
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's exporter uses what PyTorch itself calls old
            yield
    finally:
        logger.setLevel(before)


def main(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: A run's folder or a checkpoint, and options.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If there is no model, or a package is missing.
        RuntimeError: If a file does not compute what the model does; it is not kept.
    """
    options = _parse(args)
    source = find_checkpoint(Path(options.run))
    model = ImageClassifier.from_run(source)
    data = {} if source.suffix == ".safetensors" else hyper_parameters(load_checkpoint(source), source)[1]
    run = run_of(source)
    folder = Path(options.output or (run or source.parent) / "export")
    _take_folder(folder, source, model)
    images, title = images_to_check(data)
    images = (images / 255 if options.input == "float" else images).contiguous()
    print(f"held against the model: {title}\n\n{'':<20}{'bytes':>12}{'difference':>12}", flush=True)
    computed_by: dict[str, Runs] = {"PyTorch": taking(images.dtype, model)}
    for kind in options.to:
        difference, computed_by[f"model.{kind}"] = export(model, kind, images, folder)
        size = (folder / f"model.{kind}").stat().st_size
        print(f"model.{kind:<14}{size:>12,}{difference:>12.1e}", flush=True)
    write_card(folder, model, data, load_results(run) if run else {})
    print("\nThe largest difference of a logit stands there, and all labels are equal.")
    if options.benchmark:
        threads, size = torch.get_num_threads(), min(BATCH_SIZE, len(images))
        print(f"\n{'':<20}{'images/s':>12}   on the CPU, {threads} threads, in batches of {size}")
        for name, speed in images_per_second(computed_by, images).items():
            print(f"{name:<20}{speed:>12,.0f}")
    print(f"\nfolder  {shorten(str(folder))}")
    return 0


def _take_folder(folder: Path, source: Path, model: ImageClassifier) -> None:
    """Make the folder, and see to it that nobody's files are lost and that all that it holds is of this model."""
    if folder.resolve() == source.parent.resolve():
        raise ValueError(f"--output is {folder}, where the model itself lies: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output is {folder}: it cannot be made ({error.strerror})") from error
    before = card_fingerprint(folder)
    if before is None and any(folder.iterdir()):
        raise ValueError(f"--output is {folder}, which holds something else than an export: give another folder")
    if before not in (None, fingerprint(model)):
        print(f"the files of another model in {shorten(str(folder))} are removed")
        for file in (*folder.glob("model.*"), folder / "config.json"):
            file.unlink(missing_ok=True)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        usage="python scripts/export.py RUN_OR_CHECKPOINT --to FORMAT... [options]",
        description="Write a trained model for use elsewhere, if the file computes what the model does.",
        examples=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN_OR_CHECKPOINT", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_argument("--to", metavar="FORMAT", choices=PACKAGES, nargs="+", required=True, help=", ".join(PACKAGES))
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="what onnx and pt2 take: bytes, or float32 in [0, 1] (default: uint8); safetensors takes both",
    )
    parser.add_argument("--output", metavar="FOLDER", help="where the files go (default: export in the run's folder)")
    parser.add_argument("--benchmark", action="store_true", help="measure images per second on the CPU, too")
    options = parser.parse_args(args)
    options.to = list(dict.fromkeys(options.to))
    for package in (package for kind in options.to for package in PACKAGES[kind]):
        import_extra(package, extra="export")
    return options
