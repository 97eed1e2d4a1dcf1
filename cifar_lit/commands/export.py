"""Export of a run to a file for use elsewhere, checked against the model."""

import argparse
import json
import logging
import statistics
import tempfile
import timeit
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_lit.checkpoint import save_safetensors
from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.commands.export_folder import folder_of, publish, writing
from cifar_lit.data.augment import resize, to_float
from cifar_lit.data.synthetic import Synthetic
from cifar_lit.errors import UserError, import_extra
from cifar_lit.evaluation.card import fingerprint, write_card
from cifar_lit.files import printable, shorten, write_atomic
from cifar_lit.module import ImageClassifier
from cifar_lit.run import Run

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
"""The formats, and the optional packages of each."""
NUM_CHECKED = 1000
TOLERANCE = 1e-4
"""Largest allowed difference of a logit, relative to the largest logit (or to 1, if that is larger)."""
BATCH_SIZE = 100
NUM_TIMED = 9
EXAMPLES = """
cifar-lit export lightning_logs/version_0 --to onnx
cifar-lit export lightning_logs/version_0 --to onnx pt2 safetensors
cifar-lit export lightning_logs/version_0 --to onnx --input float --benchmark
"""
Logits = Callable[[Tensor], Tensor]
"""Images ``(N, 3, size, size)`` -> logits ``(N, C)``: the model, or what an exported file computes."""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    formats = list(dict.fromkeys(options.to))
    with naming_options(parser.names):
        if options.input != "uint8" and not {"onnx", "pt2"} & set(formats):
            raise UserError("`input` is float: only onnx and pt2 have an input; leave it out, or name them with `to`")
        for package in (package for kind in formats for package in PACKAGES[kind]):
            import_extra(package, extra="export")
        run = Run(options.run, trust=options.trust)
        model = run.model()
        folder = folder_of(run, options.output)
        with writing(folder, run):
            write_all(run, model, formats, folder, options)
    return 0


def write_all(
    run: Run, model: ImageClassifier, formats: Sequence[str], folder: Path, options: argparse.Namespace
) -> None:
    """Write and check a file for each format, print a table, and put them into the folder, with the card."""
    images, title = images_to_check(run, model.image_size)
    images = to_float(images).contiguous() if options.input == "float" else images
    print(f"checked against the model: {title}\n\n{'':<20}{'bytes':>12}{'difference':>12}", flush=True)
    data_options, results = run.checkpoint.get("datamodule_hyper_parameters", {}), run.own_results
    computed_by: dict[str, Logits] = {"PyTorch": model}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as name:
        place = Path(name)
        for kind in formats:
            difference, computed_by[f"model.{kind}"] = export(model, kind, images, place)
            size = (place / f"model.{kind}").stat().st_size
            print(f"model.{kind:<14}{size:>12,}{difference:>12.1e}", flush=True)
        print("\nThe difference is the largest of a logit; all predicted classes are equal.")
        publish(place, folder, fingerprint(model), partial(write_card, folder, model, data_options, results))
    if options.benchmark:
        print_speeds(computed_by, images)
    print(f"\nfolder  {printable(shorten(folder))}")


def images_to_check(run: Run, size: int) -> tuple[Tensor, str]:
    """Return uint8 images ``(NUM_CHECKED, 3, size, size)`` and what they are: the run's own, then synthetic."""
    own = torch.zeros(0, size, size, 3, dtype=torch.uint8)
    try:
        datamodule = run.datamodule()
        datamodule.setup("fit")  # without prepare_data: no download for this
        split = datamodule.val or datamodule.train
        assert split is not None
        index = torch.linspace(0, len(split.labels) - 1, min(NUM_CHECKED, len(split.labels))).long()
        own = split.images[index]
    except (UserError, OSError) as error:
        print(f"the run's own images are not available ({printable(str(error))})")
    synthetic = Synthetic(num_test=NUM_CHECKED).load("test").images[: NUM_CHECKED - len(own)]
    counts = {"images of the run's own data": len(own), "synthetic images": len(synthetic)}
    title = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    filling = resize(synthetic.permute(0, 3, 1, 2), size)
    return torch.cat([own.permute(0, 3, 1, 2), filling]).contiguous(), title


def export(model: ImageClassifier, kind: str, images: Tensor, folder: Path) -> tuple[float, Logits]:
    """Write ``model.KIND`` if it computes what the model does; return the largest difference, and what it computes."""
    write = {"onnx": write_onnx, "pt2": write_pt2, "safetensors": write_safetensors}[kind]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no network here uses
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export") as place, warnings.catch_warnings(action="ignore"):
        # Warnings: PyTorch's exporter uses what PyTorch itself deprecates.
        path = Path(place, f"model.{kind}")
        compute = write(model, torch.zeros_like(images[:2]), path)  # zeros, because a pt2 keeps them
        difference = check(path.name, logits_of(compute, images), logits_of(model, images))
        for part in Path(place).iterdir():
            write_atomic(folder / part.name, part.read_bytes())
    return difference, compute


def write_onnx(model: ImageClassifier, example: Tensor, path: Path) -> Logits:
    """Write an ONNX file for any batch size, with the class names as JSON in its metadata."""
    program = torch.onnx.export(_trace(model, example), input_names=["images"], output_names=["logits"], verbose=False)
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(model.classes)
    program.save(path)
    session = import_extra("onnxruntime", extra="export").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_pt2(model: ImageClassifier, example: Tensor, path: Path) -> Logits:
    """Write a program of ``torch.export`` for any batch size, with the class names in ``classes.json`` inside."""
    with path.open("wb") as file:
        torch.export.save(_trace(model, example), file, extra_files={"classes.json": json.dumps(model.classes)})
    with path.open("rb") as file:
        return torch.export.load(file).module()


def write_safetensors(model: ImageClassifier, _example: Tensor, path: Path) -> Logits:
    """Write the weights, with the model's settings in ``config.json`` beside them."""
    save_safetensors(path, model.hparams, model.state_dict())
    return Run(path).model()


def _trace(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the folders of this machine
    return program


@torch.inference_mode()
def logits_of(compute: Logits, images: Tensor) -> Tensor:
    return torch.cat([compute(batch) for batch in torch.split(images, BATCH_SIZE)])


def check(name: str, computed: Tensor, expected: Tensor) -> float:
    """Return the largest difference of the logits ``(N, C)`` of a file and of the model, which must be small."""
    difference = float((computed - expected).abs().max())
    num_other = int((computed.argmax(1) != expected.argmax(1)).sum())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if num_other or not difference <= allowed:
        raise UserError(
            f"{name} is not kept: it predicts another class for {num_other} of {len(expected):,} images, and its "
            f"logits differ by up to {difference:.2g} (allowed: {allowed:.2g})",
            exit_code=1,
        )
    return difference


def print_speeds(computed_by: Mapping[str, Logits], images: Tensor) -> None:
    """Measure in turns, after a warm-up: what slows the machine down slows down all."""
    seconds: dict[str, list[float]] = {name: [] for name in computed_by}
    for _ in range(1 + NUM_TIMED):
        for name, compute in computed_by.items():
            seconds[name].append(timeit.timeit(partial(logits_of, compute, images), number=1))
    print(f"\n{'':<20}{'images/s':>12}   on the CPU, {torch.get_num_threads()} threads, in batches of {BATCH_SIZE}")
    for name, rounds in seconds.items():
        print(f"{name:<20}{len(images) / statistics.median(rounds[1:]):>12,.0f}")


def _parser() -> CommandParser:
    parser = CommandParser(
        "export", "RUN --to FORMAT...", "Write a trained model to a file that computes the same elsewhere.", EXAMPLES
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder (its best checkpoint), a checkpoint or an export")
    parser.add_trust()
    parser.add_argument("--to", metavar="FORMAT", choices=PACKAGES, nargs="+", required=True, help=", ".join(PACKAGES))
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="onnx and pt2 take uint8 (default) or float in [0, 1]",
    )
    parser.add_argument("--output", metavar="FOLDER", help="where the files go (default: export in the run's folder)")
    parser.add_argument("--benchmark", action="store_true", help="measure images per second on the CPU, too")
    return parser
