"""The options of ``cifar-lit fit``, and the model and data that they describe."""

import argparse
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from cifar_lit.callbacks.best import MONITORED, Monitor
from cifar_lit.callbacks.saver import Saver
from cifar_lit.checkpoint import check_exists
from cifar_lit.cli.config import install_loader
from cifar_lit.cli.help import EXAMPLES
from cifar_lit.cli.network import check_network, drop_odd_defaults, own_code
from cifar_lit.cli.options import WITHHELD, FitTrainer, check_config
from cifar_lit.cli.parser import GROUPS, TRUST_HELP, FitParser, build, building, naming_options
from cifar_lit.cli.start import WHOLE
from cifar_lit.cli.trust import given_options
from cifar_lit.cli.words import option_names
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError, require
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.kernels import check_shapes
from cifar_lit.networks.winograd import Kernels
from cifar_lit.recipes import RECIPES, recipe_help
from cifar_lit.run import find_checkpoint, run_folder
from cifar_lit.schema import read_yaml
from cifar_lit.trust import only_read

# Lightning's Timer has such a default, which config.yaml would not take.
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, value: dumper.represent_data(value.value))


class FitCLI(LightningCLI):
    """Lightning's command line, for ``fit`` alone: it parses the options, sets the seed, builds model and data.

    The Trainer is built later, when the folder of the run is known. ``config`` holds the options as plain values,
    ``config_init`` with the Trainer's callbacks, loggers and plugins built. A trial keeps no checkpoints.
    """

    model: ImageClassifier
    datamodule: CIFAR10DataModule

    def __init__(self, args: Sequence[str], *, is_trial: bool = False) -> None:
        install_loader()
        self.is_trial = is_trial
        self.given = given_options(args)
        super().__init__(
            ImageClassifier,
            CIFAR10DataModule,
            trainer_class=FitTrainer,
            run=False,
            save_config_callback=None,  # the Saver writes config.yaml
            parser_class=FitParser,
            parser_kwargs={
                "usage": "cifar-lit fit [options]",
                "description": "Train, and test the checkpoint that is best on validation, or the last, once.",
                "epilog": EXAMPLES,
            },
            args=list(args),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # the module keeps its hyper-parameters itself, as in plain Python
        )

    @property
    def names(self) -> dict[str, str]:
        names = option_names(self.parser._option_string_actions)
        net = self.config["model"]["net"]
        of_net = net.get("init_args") if isinstance(net, Namespace) else None
        names = {**{name: f"--model.net.{name}" for name in (of_net.keys() if of_net else ())}, **names}
        return {**names, "seed": "--seed_everything", "trust": "--trust_run"}

    @property
    def trainer_options(self) -> dict[str, Any]:
        return dict(self.config_init["trainer"])

    @property
    def has_val(self) -> bool:
        return self.datamodule.has_val and self.trainer_options["limit_val_batches"] != 0

    @property
    def saving(self) -> tuple[Monitor, dict[str, Any]]:
        """What the best checkpoint is chosen by, and the options of the Saver."""
        options = dict(self.config["checkpoint"].items())
        monitor = options.pop("monitor")
        if not self.has_val and monitor != MONITORED[0]:
            raise UserError(f"`monitor` is {monitor}, and there is no validation: give `val_size`, or leave it out")
        for name, value in () if self.is_trial else self.config["checkpoint"].items():
            if value not in (0, MONITORED[0]) and self.trainer_options["enable_checkpointing"] is False:
                raise UserError(f"`{name}` is {value}, and `enable_checkpointing` is False: leave out one of the two")
        return monitor, options

    @property
    def keeps_checkpoints(self) -> bool:
        return self.trainer_options["enable_checkpointing"] is not False and not self.trainer_options["fast_dev_run"]

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of the initial weights and of the order of the images."
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--recipe", choices=list(RECIPES), metavar="NAME", default="tutorial", help=recipe_help())
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Resume a training: last (the run that was saved last), a run's folder, or a checkpoint.",
        )
        parser.add_argument("--trust_run", action="store_true", help=TRUST_HELP)
        parser.add_class_arguments(Saver, "checkpoint", skip={"run", "keep"}, instantiate=False)
        monitor = "What best.ckpt is the best of on validation; of epochs equal in it, that with the lowest loss."
        parser.add_argument("--checkpoint.monitor", type=Monitor, default=MONITORED[0], help=monitor)
        parser.add_argument(
            "--report",
            action=ActionYesNo(no_prefix="no_"),
            nargs="?",
            default=True,
            help="Write report.html into the run's folder: metrics per class, confusion matrix, errors, filters.",
        )
        parser.add_argument("--help_all", action="help", help="Explain every option; --help those that people use.")
        for name in WITHHELD:
            parser._option_string_actions[f"--trainer.{name}"].help = argparse.SUPPRESS
        parser.link_arguments("seed_everything", "data.seed")
        for name in ("image_size", "resize"):
            parser.link_arguments(f"data.{name}", f"model.{name}")
        parser.link_arguments("data", "model.classes", self._find_classes, apply_on="instantiate")

    def _find_classes(self, data: CIFAR10DataModule) -> list[str]:
        """Return the names of the classes; what only the file of a run names is not downloaded for them."""
        path = self.config["ckpt_path"]
        if path and run_folder(Path(path)) and not self.config["trust_run"] and "--data.root" not in self.given:
            only_read(data)
        return list(build(getattr, data, "classes"))  # jsonargparse has its own error for any other

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        for group, setting in {**GROUPS, "checkpoint": "monitor"}.items():
            value = self.config[group]
            if not (isinstance(value, Namespace) and setting in value):  # as in what [] becomes
                shown = "empty" if isinstance(value, Namespace) else value
                raise UserError(f"--{group} is {shown}: must be a mapping of its settings")
        drop_odd_defaults(self.config["model"]["net"])
        with naming_options(self.names):
            _check_options(self.config)
            if self.is_trial and self.config["ckpt_path"] is not None:  # of a --config file
                raise UserError(f"`ckpt_path` is {self.config['ckpt_path']}: leave it out, each run starts anew here")

    def instantiate_classes(self) -> None:
        with naming_options(self.names), own_code():
            with building(self.parser):
                self.config_init = self.parser.instantiate_classes(self.config)
            self.model, self.datamodule = self.config_init["model"], self.config_init["data"]
            sizes = self.datamodule.hparams["image_sizes"]
            check_network(self.model, sizes)
            if "--model.kernels" in self.given:  # the file of a run may have those of other sizes, which do nothing
                check_shapes(self.model.net, self.model.hparams["kernels"], sizes or [self.model.image_size])

    def settle(self, *, kernels: Kernels, precision: Any) -> None:
        """Put what ``auto`` stands for in its place, in the configuration, the model and the Trainer's options."""
        self.model.use_kernels(kernels)
        self.config["model"]["kernels"] = kernels
        self.config["trainer"]["precision"] = self.config_init["trainer"]["precision"] = precision

    def dump(self) -> str:
        """Return the text of ``config.yaml``, which starts a new run."""
        config = self.config.clone()
        config["ckpt_path"] = None
        del config["trust_run"]  # which no file gives itself
        return str(self.parser.dump(config, skip_none=False))


def _check_options(config: Any) -> None:
    seed, folder = config["seed_everything"], config["trainer"]["default_root_dir"]
    check_config(config)
    _check_recipe(config)
    require("seed", seed, 0 <= seed < 2**32, f"from 0 to {2**32 - 1}")
    require("default_root_dir", folder, "://" not in str(folder), "a folder")
    if config["ckpt_path"] == "last":
        raise UserError("--ckpt_path last: give that on the command line, or the name of the file here")
    if config["ckpt_path"] is not None:
        check_exists(config["ckpt_path"])
    elif config["model"]["weights"] is not None:  # a run that resumes does not open them
        config["model"]["weights"] = _file_of_weights(config["model"]["weights"])


def _file_of_weights(given: str) -> str:
    try:
        return str(find_checkpoint(Path(given)))
    except UserError as error:
        raise UserError(f"`weights`: {error}") from error


def _check_recipe(config: Any) -> None:
    """Refuse another recipe beside the configuration of a run, which has all settings: it would only be a label."""
    files = [Path(path) for path in config["config"] or ()]
    given = [read_yaml(path) for path in files if path not in RECIPES.values()]
    then = next((content["recipe"] for content in reversed(given) if "recipe" in content), config["recipe"])
    if then != config["recipe"] and any(content.keys() >= WHOLE for content in given):
        raise UserError(
            f"--recipe {config['recipe']} changes nothing: {files[-1]}, of the recipe {then}, has all its settings; "
            "leave out one of the two"
        )
