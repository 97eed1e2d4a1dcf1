"""The command line: one LightningCLI for fit, validate and test."""

import argparse
import json
import linecache
import logging
import os
import re
import shlex
import sys
import warnings
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from cifar_lit.callbacks import NetworkSummary, Pictures, ProgressBar, Speed
from cifar_lit.checkpoint import (
    SafeCheckpointIO,
    check_place,
    checkpoint_callbacks,
    find_checkpoint,
    read_hyper_parameters,
)
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.machine import describe_machine, set_up
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import DESCRIPTIONS, SUBCOMMANDS, Parser
from cifar_lit.recipes import RECIPES, recipe_help
from cifar_lit.results import (
    describe_data,
    describe_model,
    evaluate,
    format_table,
    save_results,
    shorten,
)


class CLI(LightningCLI):
    """``cifar-lit fit``, ``validate`` and ``test``."""

    def __init__(self, args: list[str], recipe: str) -> None:
        # Only the parser of the subcommand that is asked for is built: each takes half a second.
        self.asked_for = [name for name in SUBCOMMANDS if args[:1] == [name]] or list(SUBCOMMANDS)
        self.args = args
        self.recipe = recipe
        self.speed = Speed()
        self.checkpoints: list[ModelCheckpoint] = []
        super().__init__(
            ImageClassifier,
            CIFAR10DataModule,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                name: {**DESCRIPTIONS[name], "default_config_files": [str(RECIPES[recipe])] if name == "fit" else []}
                for name in self.asked_for
            },
            args=args,
            auto_configure_optimizers=False,
            # The module keeps its hyper-parameters itself, so that those of plain Python are the same.
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Name the subcommands and which of the Trainer's arguments each one does without."""
        return {name: SUBCOMMANDS[name] for name in self.asked_for}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: a whole number, and nothing else."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="What the weights and the order of the images are drawn from.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the recipe, and tie what data and model must agree on."""
        parser.add_argument("--recipe", choices=list(RECIPES), default="tutorial", help=recipe_help())
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments that ``main`` was given."""
        self.config = parser.parse_args(args)
        if self.config.get("fit", {}).get("recipe", self.recipe) != self.recipe:  # a --config file named another one
            self._subcommand_parsers["fit"].default_config_files = [str(RECIPES[self.config["fit"]["recipe"]])]
            self.config = parser.parse_args(args)
        seed = self.config[self.config["subcommand"]]["seed_everything"]
        if not 0 <= seed < 2**32:
            raise ValueError(f"--seed_everything is {seed}: give a number from 0 to {2**32 - 1}")

    def _parse_ckpt_path(self) -> None:
        # Lightning would let the checkpoint's hyper-parameters win over the command line. For validate and test, main
        # has put them in front of it; a fit that goes on must be given the same ones (after_instantiate_classes).
        pass

    def before_instantiate_classes(self) -> None:
        """Refuse what would take the machine down or score nothing."""
        config = self.config[self.config["subcommand"]]
        devices, accelerator = config["trainer"]["devices"], config["trainer"]["accelerator"]
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
        num_cores = os.cpu_count() or 1
        if on_cpu and str(devices).isdecimal() and int(devices) > num_cores:
            raise ValueError(f"--trainer.devices is {devices}, and this machine has {num_cores} cores: give fewer")
        checkpoint = config["ckpt_path"]
        if checkpoint is not None:
            check_place(checkpoint)
        if "://" in str(config["trainer"]["default_root_dir"]):
            raise ValueError(f"--trainer.default_root_dir is {config['trainer']['default_root_dir']}: give a folder")

    def after_instantiate_classes(self) -> None:
        """Refuse what data and model do not agree on, and other settings than those of a checkpoint to go on from."""
        checkpoint = self.config[self.subcommand]["ckpt_path"]
        if self.subcommand != "fit":
            return
        for size in set(self.datamodule.hparams["image_sizes"]):
            try:
                with torch.no_grad():
                    self.model.net.eval()(torch.zeros(1, 3, size, size))
            except RuntimeError as error:
                name = type(self.model.net).__name__
                raise ValueError(f"--data.image_sizes has {size}, which {name} does not take: leave it out") from error
        self.model.net.train()
        if checkpoint is None:
            return
        # Its optimizer and its split would win, unsaid.
        then = {name: value for part in read_hyper_parameters(Path(checkpoint)) for name, value in part.items()}
        now = {**self.model.hparams, **self.datamodule.hparams}
        changed = [name for name in then if name not in ("root", "cache_dir", "mirror") and then[name] != now.get(name)]
        if changed:
            differences = ", ".join(f"{name} {then[name]} (asked for: {now.get(name)})" for name in changed)
            raise ValueError(f"--ckpt_path {checkpoint} goes on with its own settings: {differences}; give the same")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with our logger and observers, where the user has not chosen others."""
        config = self.config_init[self.subcommand]["trainer"]
        kwargs["callbacks"] = list(config["callbacks"] or [])
        if config["enable_progress_bar"] is not False and not _has(kwargs["callbacks"], LightningProgressBar):
            kwargs["callbacks"].append(ProgressBar())
        if self.subcommand == "fit":
            self._add_to_fit(config, kwargs)
        else:  # scoring makes no new run folder
            self.save_config_callback = None
            kwargs |= {"enable_checkpointing": False, "logger": config["logger"] or False}
        if not self.datamodule.has_val:
            kwargs["limit_val_batches"] = 0
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not _has(plugins, CheckpointIO) and isinstance(config["strategy"], str):  # an object may have its own
            kwargs["plugins"] = [*plugins, SafeCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise ValueError(f"--trainer: {error}") from error
        set_up(trainer.strategy.root_device, str(trainer.precision))
        return trainer

    def _add_to_fit(self, config: Any, kwargs: dict[str, Any]) -> None:
        kwargs["callbacks"] += [self.speed, Pictures()]
        if config["enable_model_summary"] is not False and not _has(kwargs["callbacks"], ModelSummary):
            kwargs["callbacks"].append(NetworkSummary())
        if config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
            self.checkpoints = checkpoint_callbacks(self.datamodule.has_val and config["limit_val_batches"] != 0)
            kwargs["callbacks"] += self.checkpoints
        if config["logger"] is False:
            self.save_config_callback = None  # there is no run folder to keep it in
        elif config["logger"] in (None, True):
            root = config["default_root_dir"] or "."
            kwargs["logger"] = TensorBoardLogger(root, name="lightning_logs", default_hp_metric=False)

    def after_fit(self) -> None:
        """Test the best checkpoint once, write the figures down and show them."""
        trainer = self.trainer
        if self.config["fit"]["trainer"]["fast_dev_run"]:
            return
        if self.speed.num_images == 0:
            raise ValueError("nothing was trained, so there is nothing to test: give a higher --trainer.max_epochs")
        # The checkpoints hold the averaged weights; in validation this callback would put its own in their place.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]
        # The best, where validation has found one, else the last.
        checkpoint = next((saved.best_model_path for saved in self.checkpoints if saved.best_model_path), None)
        results = {
            **evaluate(trainer, self.model, self.datamodule, checkpoint),
            **self._description(checkpoint),
            "seed": self.config["fit"]["seed_everything"],
            "recipe": self.config["fit"]["recipe"],
            "epochs": trainer.current_epoch,
            "train_seconds": self.speed.train_seconds,
            "images_per_second": self.speed.images_per_second,
            **describe_machine(trainer.strategy.root_device),
            "command": "cifar-lit " + shlex.join(self.args),
        }
        results.setdefault("Accuracy/val", None)
        results.setdefault("Loss/val", None)
        log_dir = trainer.log_dir if trainer.loggers else None  # on every rank: they agree on it
        if not trainer.is_global_zero:
            return
        if log_dir:
            save_results(results, Path(log_dir))
            results["run"] = shorten(log_dir)
        # Never test: hyper-parameters are compared by this figure.
        if isinstance(trainer.logger, TensorBoardLogger) and results["Accuracy/val"] is not None:
            options = {**self.model.hparams, **self.datamodule.hparams}
            trainer.logger.log_hyperparams(options, {"hp_metric": results["Accuracy/val"]})
            trainer.logger.save()
        _show(results)

    def validate(self, ckpt_path: str | None, **kwargs: Any) -> None:
        """Score a checkpoint on validation."""
        self._score(ckpt_path, splits=("val",))

    def test(self, ckpt_path: str | None, **kwargs: Any) -> None:
        """Score a checkpoint and show the figures that its training ended with."""
        self._score(ckpt_path, splits=("val", "test"))

    def _score(self, checkpoint: str | None, *, splits: tuple[str, ...]) -> None:
        if checkpoint is None:  # an option or a configuration file took back the one that was given
            raise ValueError("--ckpt_path is null: the weights would be random; leave it out")
        figures = evaluate(self.trainer, self.model, self.datamodule, checkpoint, splits=splits)
        if self.trainer.is_global_zero:
            _show({**figures, **self._description(checkpoint)})

    def _description(self, checkpoint: str | None) -> dict[str, Any]:
        return {
            "checkpoint": shorten(checkpoint) if checkpoint else "none: the last weights",
            **describe_data(self.datamodule),
            **describe_model(self.model),
        }


def checkpoint_args(path: Path) -> list[str]:
    """Write a checkpoint's hyper-parameters as the arguments that give the same model and data.

    Args:
        path: The checkpoint file.

    Returns:
        Arguments for ``validate`` or ``test``.

    Raises:
        ValueError: If it is not one of our checkpoints.
    """
    model, data = read_hyper_parameters(path)
    del model["classes"]  # the data's, which are compared with these when the weights are loaded
    given = ["--ckpt_path", str(path), "--seed_everything", str(data.pop("seed"))]
    return [*given, "--model", json.dumps(model), "--data", json.dumps(data)]


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: A subcommand and its options; those of the process where it is None.

    Raises:
        SystemExit: With 2 for bad arguments and 1 for what went wrong later, after one line on standard error.
    """
    args = list(sys.argv[1:] if args is None else args)
    _quieten()
    try:
        recipe_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        recipe_parser.add_argument("--recipe", nargs="?", default="tutorial")
        recipe = recipe_parser.parse_known_args(args)[0].recipe
        if args and args[0] in ("validate", "test") and not {"-h", "--help"} & set(args):
            if len(args) < 2 or args[1].startswith("-"):
                raise ValueError(f"{args[0]} needs a run's folder or a checkpoint as its first argument")
            args = [args[0], *checkpoint_args(find_checkpoint(Path(args[1]))), *args[2:]]
        CLI(args, recipe if recipe in RECIPES else "tutorial")
    except (ValueError, RuntimeError, OSError) as error:
        if not (isinstance(error, OSError) or _is_for_people(error)):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    except MisconfigurationException as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _is_for_people(error: BaseException) -> bool:
    """Tell an error that a ``raise`` of this package made, whose message says all, from a bug: that has a traceback."""
    *_, last = walk_tb(error.__traceback__)
    frame, line_number = last
    line = linecache.getline(frame.f_code.co_filename, line_number)
    return str(frame.f_globals["__name__"]).startswith("cifar_lit.") and line.lstrip().startswith("raise ")


def _show(results: dict[str, Any]) -> None:
    try:
        print("\n" + format_table(results), flush=True)
    except BrokenPipeError:  # whoever read the output has seen enough, as head has; all figures are written down
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more at its end


def _has(callbacks: list[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _quieten() -> None:
    """Leave out what says nothing about the run."""
    noise = re.compile("Tip:|TPU available|model summary callbacks|Restoring states|Loaded model|`Trainer.fit` stopped")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(lambda record: not noise.search(record.getMessage()))
    for message in (
        # What Lightning 2.6 still calls of newer torch, and TensorBoard for the graph.
        ".*LeafSpec.*",
        ".*torch.jit.trace.*",
        # We log per epoch, so an interval of steps means nothing.
        ".*smaller than the logging interval.*",
        # The summary's line on the size of the weights.
        ".*not supported by the model summary.*",
        # Scoring a checkpoint needs no ModelCheckpoint.
        ".*callbacks used to create the checkpoint.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture is said by read_picture
