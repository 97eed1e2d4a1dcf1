"""What the command line is called and how it refuses: the subcommands, their descriptions, errors of one line."""

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

SUBCOMMANDS = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
    "validate": {"model", "dataloaders", "datamodule", "verbose"},
    "test": {"model", "dataloaders", "datamodule", "verbose"},
}
"""What can be done, and the arguments of the Trainer's method that are no options."""

DESCRIPTIONS = {
    "fit": {
        "usage": "python scripts/fit.py [options]",
        "description": "Train, keep the checkpoint that is best on validation, and test it once.",
    },
    "validate": {
        "usage": "cifar-lit validate RUN_OR_CHECKPOINT [options]",
        "description": "Score a run or a checkpoint on validation.",
    },
    "test": {
        "usage": "python scripts/test.py RUN_OR_CHECKPOINT [options]",
        "description": "Score a run or a checkpoint on validation and test.",
    },
}
"""How each is called, and what it does."""


class Parser(LightningArgumentParser):
    """Lightning's parser, with errors of one line and no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with the arguments, in one line, and exit with 2."""
        self.exit(2, f"error: {' '.join(message.split())} (--help lists all options)\n")
