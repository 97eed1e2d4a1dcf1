"""A command line that is parsed and built again and again, up to the Trainer, without a training."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch import Trainer

from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.config import expand_homes
from cifar_lit.cli.filters import filter_logs
from cifar_lit.cli.parser import naming_options
from cifar_lit.cli.start import with_config
from cifar_lit.cli.trainer import build_trainer
from cifar_lit.errors import UserError

SOURCE = ("--data.source", "synthetic")


class Workbench:
    """Builds what a command line describes; the parser, which takes longest to make, is made once."""

    def __init__(self) -> None:
        filter_logs()
        self.cli = FitCLI(with_config(SOURCE))

    def parse(self, *args: str) -> None:
        """Parse options; without the recipe, which takes half of the time, where they name no file or recipe."""
        has_file = any(arg.startswith(("--config", "--recipe")) for arg in args)
        args = tuple(with_config([*SOURCE, *args])) if has_file else (*SOURCE, "--trainer.max_epochs=20", *args)
        self.cli.parse_arguments(self.cli.parser, expand_homes(args))

    def build(self, *args: str) -> Trainer:
        """Return the Trainer of ``fit`` with these options."""
        self.parse(*args)
        self.cli.instantiate_classes()
        if self.cli.trainer_options["precision"] == "auto":  # which fit settles first, by measuring
            self.cli.settle(kernels=self.cli.model.hparams["kernels"], precision="32-true")
        with naming_options(self.cli.names):
            return build_trainer(self.cli, None, None, [])

    def refusal(self, args: Sequence[str]) -> str:
        """Return the one line that a command line is refused with, with exit code 2; empty if it is not refused."""
        try:
            self.build(*args)
        except UserError as error:
            return " ".join(str(error).split()) if error.exit_code == 2 else f"exit code {error.exit_code}"
        return ""


@contextlib.contextmanager
def torch_flags_kept() -> Iterator[None]:
    """Restore what a Trainer sets for the whole process."""
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic)
