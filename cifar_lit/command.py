"""One LightningCLI for fit, validate and test: what each of them does."""

import os
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionYesNo
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.callbacks import NetworkSummary, Pictures, ProgressBar, Speed
from cifar_lit.checkpoint import Best, SafeCheckpointIO, check_place, hyper_parameters, load_checkpoint
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.machine import describe_machine, set_up
from cifar_lit.module import ImageClassifier
from cifar_lit.parser import DESCRIPTIONS, SUBCOMMANDS, Parser, reader_may_leave
from cifar_lit.recipes import RECIPES, recipe_help
from cifar_lit.results import (
    add_report,
    describe_data,
    describe_model,
    evaluate,
    format_table,
    load_results,
    save_results,
    shorten,
)
from cifar_lit.runs import LOGS, RunFolder, run_of
from cifar_lit.saver import Saver


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` when a training starts and no sooner: a bad start does not change that of a run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        super().setup(trainer, pl_module, "fit")


class CLI(LightningCLI):
    """``cifar-lit fit``, ``validate`` and ``test``.

    Args:
        args: The subcommand and its options.
        recipe: The recipe that a fit begins from.
        command: How a person would call it; it is written down.
        watcher: A callback that watches a fit which is a trial: one without a test at its end.
    """

    def __init__(self, args: list[str], recipe: str, command: str, watcher: Callback | None = None) -> None:
        # Only the parser of the subcommand that is asked for is built: each takes half a second.
        self.asked_for = [name for name in SUBCOMMANDS if args[:1] == [name]] or list(SUBCOMMANDS)
        self.command = command
        self.recipe = recipe
        self.watcher = watcher
        self.speed = Speed()
        self.best: Best | None = None
        self.saver: Saver | None = None
        self.run_folder = RunFolder()
        self.checkpoint: dict[str, Any] = {}  # that a fit goes on from
        try:
            super().__init__(
                ImageClassifier,
                CIFAR10DataModule,
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={
                    name: {
                        **DESCRIPTIONS[name],
                        "default_config_files": [str(RECIPES[recipe])] if name == "fit" else [],
                    }
                    for name in self.asked_for
                },
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},  # in a run that goes on
                args=args,
                auto_configure_optimizers=False,
                # The module keeps its hyper-parameters itself, so that those of plain Python are the same.
                load_from_checkpoint_support=False,
            )
        finally:
            self.run_folder.close(keep=self.speed.num_images > 0)

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
        """Add the recipe, saving and the report, and tie what data and model must agree on."""
        parser.add_argument("--recipe", choices=list(RECIPES), default="tutorial", help=recipe_help())
        # test and validate take these, too, and do nothing with them: the config.yaml of a run has them.
        parser.add_argument(
            "--lr_finder",
            action=ActionYesNo(no_prefix="no_"),
            default=False,
            help="Take the rate that Lightning's finder suggests after 200 steps of rising rates, and not --model.lr; "
            "its curve is drawn in lr_finder.png.",
        )
        parser.add_argument(
            "--checkpoint.every_n_steps", type=int, default=0, help="Save within an epoch, too, every so many steps."
        )
        parser.add_argument(
            "--checkpoint.every_n_minutes", type=float, default=0.0, help="Or every so many minutes; 0 for neither."
        )
        parser.add_argument(
            "--report",
            action=ActionYesNo(no_prefix="no_"),
            default=self.asked_for == ["fit"],
            help="Write report.html into the run's folder: figures per class, confusion matrix, mistakes, filters.",
        )
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
        # has put them in front of it; a fit that goes on must be given the same ones (_check_checkpoint).
        pass

    def before_instantiate_classes(self) -> None:
        """Refuse what would take the machine down or score nothing."""
        config = self.config[self.config["subcommand"]]
        devices, accelerator = config["trainer"]["devices"], config["trainer"]["accelerator"]
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
        num_cores = os.cpu_count() or 1
        if on_cpu and str(devices).isdecimal() and int(devices) > num_cores:
            raise ValueError(f"--trainer.devices is {devices}, and this machine has {num_cores} cores: give fewer")
        if config["ckpt_path"] == "last":
            raise ValueError("--ckpt_path last: give that on the command line, or the name of the file here")
        if config["ckpt_path"] is not None:
            check_place(config["ckpt_path"])
        if self.subcommand == "fit":
            _check_validation(config["trainer"])
        if "://" in str(config["trainer"]["default_root_dir"]):
            raise ValueError(f"--trainer.default_root_dir is {config['trainer']['default_root_dir']}: give a folder")

    def _epochs_done(self) -> int:
        return int(self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])

    def after_instantiate_classes(self) -> None:
        """Refuse what data and model do not agree on, and a disk without room for their checkpoint."""
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
        # A checkpoint holds the weights, at most two more numbers for each in the optimizer, and perhaps their average.
        self.run_folder.check_space(sum(4 * 4 * weights.numel() for weights in self.model.parameters()) + 100_000)

    def _check_checkpoint(self, path: Path, max_epochs: int | None) -> None:
        """Refuse to go on with other settings, for the checkpoint's would win, unsaid, or with what is over."""
        self.checkpoint = load_checkpoint(path)
        then = {name: value for part in hyper_parameters(self.checkpoint, path) for name, value in part.items()}
        now = {**self.model.hparams, **self.datamodule.hparams}
        changed = [name for name in then if name not in ("root", "cache_dir", "mirror") and then[name] != now.get(name)]
        if changed:
            differences = ", ".join(f"{name} {then[name]} (asked for: {now.get(name)})" for name in changed)
            way_out = "give the same, or leave them out"
            if run_of(path) is None:
                way_out = "give the same, for its run's config.yaml is not beside it"
            raise ValueError(
                f"--ckpt_path {path} goes on with the settings of its optimizer, network and data: {differences}; "
                f"{way_out}"
            )
        num_epochs, run = self._epochs_done(), run_of(path)
        num_left = 1 if max_epochs in (None, -1) else int(max_epochs) - num_epochs
        is_tested = run is None or (run / "results.json").exists()
        if num_left < 0 or (num_left == 0 and is_tested):
            raise ValueError(
                f"--trainer.max_epochs is {max_epochs}, and {path} has {num_epochs} epochs behind it: give more"
            )
        if _is_first_process():
            print(
                f"going on with {path}: {num_epochs} epochs and {self.checkpoint['global_step']:,} steps are behind it"
            )

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
        callbacks = kwargs["callbacks"]
        callbacks += [self.speed, Pictures(), *([self.watcher] if self.watcher else [])]
        if config["enable_model_summary"] is not False and not _has(callbacks, ModelSummary):
            callbacks.append(NetworkSummary())
        keep = config["enable_checkpointing"] is not False and not config["fast_dev_run"]
        if keep and self.datamodule.has_val and config["limit_val_batches"] != 0:
            self.best = Best()
            callbacks.append(self.best)
        options = self.config_init["fit"]["checkpoint"]
        self.saver = Saver(every_n_steps=options.every_n_steps, every_n_minutes=options.every_n_minutes, keep=keep)
        callbacks.append(self.saver)  # behind the best: the last checkpoint knows of it
        kwargs["enable_checkpointing"] = True  # by these two
        path = self.config_init["fit"]["ckpt_path"]
        if path is not None:
            self._check_checkpoint(Path(path), config["max_epochs"])
            self.config["fit"]["ckpt_path"] = None  # what is written into the run's folder begins anew
        if config["logger"] in (None, True):
            kwargs["logger"] = self._make_logger(config, path)
        elif not keep:
            self.save_config_callback = None  # there is no run folder to keep it in
        elif config["logger"] is False:
            run = self._take_folder(config, path)
            if run is not None:
                kwargs["default_root_dir"] = str(run)
        else:
            self.run_folder.share(Path(config["default_root_dir"] or "."))

    def _take_folder(self, config: Any, checkpoint: str | None) -> Path | None:
        """Give the folder of the run: that of the checkpoint, or a new one; all but the first process ask that one."""
        run = run_of(Path(checkpoint)) if checkpoint else None
        if _is_first_process():
            if run is None:
                return self.run_folder.create(Path(config["default_root_dir"] or "."))
            self.run_folder.reopen(run)
        return run

    def _make_logger(self, config: Any, checkpoint: str | None) -> TensorBoardLogger | bool:
        if config["fast_dev_run"]:
            return False
        options: dict[str, Any] = {"default_hp_metric": False}
        if checkpoint and run_of(Path(checkpoint)):  # what the curves have of later epochs is hidden
            options |= {"purge_step": self._epochs_done()}
        run = self._take_folder(config, checkpoint)
        if run is None:
            return TensorBoardLogger(config["default_root_dir"] or ".", name=LOGS, **options)
        return TensorBoardLogger(run.parent.parent, name=run.parent.name, version=run.name, **options)

    def before_fit(self) -> None:
        """Find the learning rate, where that is asked for; what is written down is the rate that was found."""
        config = self.config["fit"]
        if not config["lr_finder"]:
            return
        if self.checkpoint or config["trainer"]["fast_dev_run"] or self.run_folder.path is None:
            raise ValueError("--lr_finder belongs to the beginning of a run that is kept: leave it out")
        from cifar_lit.lr_finder import find_lr  # matplotlib, which only this needs

        picture = self.run_folder.path / "lr_finder.png"
        lr = find_lr(self.model, self.datamodule, self.trainer, picture)
        config["lr_finder"], config["model"]["lr"] = False, lr
        self.model.save_hyperparameters({**self.model.hparams, "lr": lr})
        print(f"learning rate {lr:.3g}, from {shorten(str(picture))}")

    def after_fit(self) -> None:
        """Test the best checkpoint once, write the figures down and show them."""
        trainer = self.trainer
        if self.watcher or self.config["fit"]["trainer"]["fast_dev_run"]:
            return
        if self.speed.num_images == 0:
            raise ValueError("nothing was trained, so there is nothing to test: give a higher --trainer.max_epochs")
        # The checkpoints hold the averaged weights; in validation this callback would put its own in their place.
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]
        # The best, where validation has found one, else the last.
        best, last = self.best and self.best.best_model_path, self.saver and self.saver.path
        checkpoint = best or (str(last) if last else None)
        # Before the test, for which the callbacks' state, too, is loaded from the checkpoint.
        speed = {"train_seconds": self.speed.train_seconds, "images_per_second": self.speed.images_per_second}
        best_epoch = {"best_epoch": self.best.best_epoch} if self.best and best else {}
        results = {
            **evaluate(trainer, self.model, self.datamodule, checkpoint),
            **self._description(checkpoint),
            "seed": self.config["fit"]["seed_everything"],
            "recipe": self.config["fit"]["recipe"],
            "epochs": trainer.current_epoch,
            **best_epoch,
            **speed,
            **describe_machine(trainer.strategy.root_device),
            "command": self.command,
        }
        results.setdefault("Accuracy/val", None)
        results.setdefault("Loss/val", None)
        log_dir = trainer.log_dir if trainer.loggers or self.run_folder.path else None  # every rank: they agree on it
        if not trainer.is_global_zero:
            return
        if log_dir:
            logger = trainer.logger if isinstance(trainer.logger, TensorBoardLogger) else None
            if self.config["fit"]["report"]:
                for one in trainer.loggers:
                    one.save()  # the curves are read from the disk
                add_report(results, self.model, self.datamodule, Path(log_dir), logger)
            save_results(results, Path(log_dir))
            results["run"] = shorten(log_dir)
        # Never test: hyper-parameters are compared by this figure.
        if isinstance(trainer.logger, TensorBoardLogger) and results["Accuracy/val"] is not None:
            options = {**self.model.hparams, **self.datamodule.hparams}
            trainer.logger.log_hyperparams(options, {"hp_metric": results["Accuracy/val"]}, step=trainer.current_epoch)
            trainer.logger.save()
        with reader_may_leave():  # all figures are written down
            print("\n" + format_table(results))

    def validate(self, ckpt_path: str | None, **kwargs: Any) -> None:
        """Score a checkpoint on validation."""
        self._score(ckpt_path, splits=("val",))

    def test(self, ckpt_path: str | None, **kwargs: Any) -> None:
        """Score a checkpoint and show the figures that its training ended with."""
        self._score(ckpt_path, splits=("val", "test"))

    def _score(self, checkpoint: str | None, *, splits: tuple[str, ...]) -> None:
        if checkpoint is None:  # an option or a configuration file took back the one that was given
            raise ValueError("--ckpt_path is null: the weights would be random; leave it out")
        asks_report = self.config[self.subcommand]["report"]
        run = run_of(Path(checkpoint))
        if asks_report and (run is None or "test" not in splits):
            raise ValueError("--report needs a run's folder, to be written into, and test")
        figures = evaluate(self.trainer, self.model, self.datamodule, checkpoint, splits=splits)
        if self.trainer.is_global_zero:
            results = {**figures, **self._description(checkpoint)}
            if asks_report and run is not None:
                results = {**load_results(run), **results}
                add_report(results, self.model, self.datamodule, run)
                save_results(results, run)
                results["run"] = shorten(str(run))
            with reader_may_leave():
                print("\n" + format_table(results))

    def _description(self, checkpoint: str | None) -> dict[str, Any]:
        return {
            "checkpoint": shorten(checkpoint) if checkpoint else "none: the last weights",
            **describe_data(self.datamodule),
            **describe_model(self.model),
        }


def _check_validation(trainer: Any) -> None:
    """Let validation be at the end of an epoch, where the checkpoints are saved that it chooses from."""
    if trainer["val_check_interval"] not in (None, 1, 1.0):
        raise ValueError(f"--trainer.val_check_interval is {trainer['val_check_interval']}: give 1.0, or leave it out")
    every = trainer["check_val_every_n_epoch"]
    if every is None or every < 1:
        raise ValueError(f"--trainer.check_val_every_n_epoch is {every}: give 1 or more")


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0  # known before there is a Trainer


def _has(callbacks: list[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
