"""What ``scripts/bench.py --gpu`` measures: each stage yields rows, in a process of its own."""

import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml
from torch import Tensor

from cifar_lit import networks
from cifar_lit.benchmarks.measures import Data
from cifar_lit.cli.fit import fit
from cifar_lit.data.augment import Augmentation
from cifar_lit.data.loader import BatchLoader
from cifar_lit.data.mixing import mean_cross_entropy
from cifar_lit.errors import UserError
from cifar_lit.machine import set_up
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.optim import make_optimizer
from cifar_lit.recipes import RECIPES

Row = dict[str, Any]
Mode = str
"""How the network is run: eager, CUDA graphs, compile, or compile with CUDA graphs (reduce-overhead)."""
EAGER: tuple[tuple[str, str, Mode], ...] = (
    ("float32", "contiguous", "eager"),  # in channels_last, cuDNN searches for half a minute
    *itertools.product(("bf16-mixed", "TF32"), ("channels_last", "contiguous"), ("eager",)),
    ("bf16-mixed", "channels_last", "CUDA graphs"),
)
COMPILED: tuple[tuple[str, str, Mode], ...] = (
    ("bf16-mixed", "channels_last", "compile"),
    ("bf16-mixed", "channels_last", "compile, reduce-overhead"),
)
"""Precision, memory layout and mode of each variant."""
RECIPE_OF = {"FastCNN": "gpu94", "StrongCNN": "strong", "TutorialCNN": "tutorial"}
"""The recipe that each network is trained with: its batch size, augmentation, loss and optimizer."""
SECONDS = 1.5
"""Of steady training for each variant."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the stages run on: the data, and the device. On a CPU they are only tried, on a few images."""

    data: Data
    device: torch.device

    @property
    def is_trial(self) -> bool:
        return self.device.type == "cpu"

    def load(self) -> tuple[Tensor, Tensor]:
        """Return all training images and labels, or the few of a trial."""
        return (self.data if self.is_trial else dataclasses.replace(self.data, num_images=sys.maxsize)).load()

    def batch_size(self, recipe: str) -> int:
        """Return the batch size of a recipe; in a trial, a quarter of the images."""
        saved: int = read_recipe(recipe)["data"].get("batch_size", 64)
        return min(saved, max(2, self.data.num_images // 4)) if self.is_trial else saved

    def options(self, recipe: str) -> list[str]:
        """Return the options of a fit with a recipe; in a trial, of two steps."""
        shared = ["--recipe", recipe, *self.data.options, "--no_report", "--trainer.enable_progress_bar", "false"]
        if not self.is_trial:
            return [*shared, "--trainer.accelerator", "gpu", "--trainer.devices", "1"]
        few: dict[str, Any] = {
            f"limit_{split}_batches": number for split, number in (("train", 2), ("val", 1), ("test", 1))
        }
        few |= {"max_epochs": 1, "precision": "32-true", "accelerator": "cpu"}
        size = ["--data.batch_size", str(self.batch_size(recipe)), "--data.val_size", "0.2"]
        return [*shared, *size, *(part for name, value in few.items() for part in (f"--trainer.{name}", str(value)))]


def read_recipe(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    return content


def tried(row: Row, measure: Callable[[], Row]) -> Row:
    """Return a row with what was measured, or with the error: the other rows of the stage are still to be measured."""
    try:
        return row | measure()
    except Exception as error:  # of torch, a compiler or a driver, of any type
        lines = [line for line in str(error).splitlines() if line.strip()]
        return row | {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}


def smoke(setting: Setting) -> Iterator[Row]:
    """Make three steps with each recipe, with all that a fit saves, and test it."""

    def three_steps(recipe: str) -> Row:
        few = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
        options = [part for name, value in few.items() for part in (f"--trainer.{name}", str(value))]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            given = [*options, *setting.options(recipe), "--trainer.default_root_dir", folder]
            if code := main(["fit", *given]):
                raise UserError(f"exit code {code} of fit {' '.join(given)}")
        return {"seconds": time.perf_counter() - started}

    for recipe in RECIPES:
        yield tried({"recipe": recipe}, lambda recipe=recipe: three_steps(recipe))  # type: ignore[misc]


def speed(setting: Setting, network: str, variants: tuple[tuple[str, str, Mode], ...]) -> Iterator[Row]:
    """Measure steady training with our loader, model and optimizer in a bare loop, in images/s, for each variant."""
    recipe, loaded = RECIPE_OF[network], setting.load()
    batch_size = setting.batch_size(recipe)
    for precision, layout, mode in variants:
        row = {"network": network, "batch_size": batch_size, "precision": precision, "layout": layout, "mode": mode}

        def measure(precision: str = precision, layout: str = layout, mode: Mode = mode) -> Row:
            _set_precision(setting.device, precision)
            step = training_step(setting, recipe, loaded, precision, layout == "channels_last", mode)
            started = time.perf_counter()
            for _ in range(1 if setting.is_trial else 12):  # compiles, captures, and chooses kernels
                step()
            _wait(setting.device)
            warm_up = time.perf_counter() - started
            return {"images_per_second": batch_size / _seconds_per_step(setting, step), "warm_up_seconds": warm_up}

        yield tried(row, measure)


def training_step(
    setting: Setting, recipe: str, loaded: tuple[Tensor, Tensor], precision: str, channels_last: bool, mode: Mode
) -> Callable[[], None]:
    """Return a function that makes a training step as in the first epoch of a recipe, without the Trainer."""
    content, device = read_recipe(recipe), setting.device
    options, data = content["model"], content["data"]
    given = options.pop("net")
    spec = given if isinstance(given, dict) else {"class_path": given}
    network = functools.partial(getattr(networks, spec["class_path"]), **spec.get("init_args", {}))
    model = ImageClassifier(classes=[str(i) for i in range(int(loaded[1].max()) + 1)], net=network, **options)
    model.to(device).train()
    if not channels_last:
        model.net.to(memory_format=torch.contiguous_format)
        model.channels_last = False
    names = ("lr", "momentum", "weight_decay", "nesterov", "muon_lr", "muon_momentum")
    optimizer = make_optimizer(model.net.parameters(), **{name: model.hparams[name] for name in names})
    augmentation = Augmentation(**{name: data[name] for name in vars(Augmentation()) if name in data})
    loader = BatchLoader(
        *loaded, batch_size=setting.batch_size(recipe), shuffle=True, augmentation=augmentation, device=device
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    batches = (batch for batch in epochs if len(batch[1]) == loader.batch_size)  # graphs are made for one size

    def autocast() -> torch.autocast:  # as Lightning's
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False)

    with autocast():
        run_as(model, mode, loader.batch_size, is_trial=setting.is_trial)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        with autocast():
            loss = mean_cross_entropy(model(images), labels, label_smoothing=model.hparams["label_smoothing"])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def run_as(model: ImageClassifier, mode: Mode, batch_size: int, *, is_trial: bool) -> None:
    """Let the network of a model run in a mode, in place.

    A trial on a CPU has no CUDA graphs, and traces what it compiles without generating code.
    """
    if mode.startswith("compile"):
        options = {"mode": "reduce-overhead"} if "reduce-overhead" in mode else {}
        model.net.compile(**({"backend": "aot_eager"} if is_trial else options))
    elif mode == "CUDA graphs" and not is_trial:
        layout = torch.channels_last if model.channels_last else torch.contiguous_format
        images = torch.rand(batch_size, 3, 32, 32, device=model.device).contiguous(memory_format=layout)
        torch.cuda.make_graphed_callables(model.net, (images,))


def fits(setting: Setting, recipe: str, num_seeds: int) -> Iterator[Row]:
    """Train with a recipe for one seed after the other in one process, and test; nothing is saved."""
    nothing = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    for seed in range(num_seeds):
        started = time.perf_counter()
        results = fit([*setting.options(recipe), *nothing, "--seed_everything", str(seed)])
        assert results is not None
        yield {
            "recipe": recipe,
            "seed": seed,
            "accuracy": results.metrics["Accuracy/test"],
            "tta_accuracy": results.metrics.get("TTAAccuracy/test"),
            "train_seconds": results.train_seconds,
            "seconds": time.perf_counter() - started,
            "images_per_second": results.images_per_second,
            "multiplications": results.multiplications,
            "epochs": results.epochs,
            "num_train": results.num_train,
            "num_test": results.num_test,
        }


def _set_precision(device: torch.device, precision: str) -> None:
    set_up(device, "32-true")
    if precision == "float32" and device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def _seconds_per_step(setting: Setting, step: Callable[[], None]) -> float:
    least, chunk = (0.0, 1) if setting.is_trial else (SECONDS, 20)
    started, num_steps = time.perf_counter(), 0
    while True:
        for _ in range(chunk):
            step()
        num_steps += chunk
        _wait(setting.device)
        if (seconds := time.perf_counter() - started) >= least:
            return seconds / num_steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
