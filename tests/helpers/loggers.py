"""Loggers that are not part of the project or of Lightning, as another package may have them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class Lines(Logger):
    """Appends what it gets to a file, and has no folder: no ``root_dir``, ``save_dir`` or ``log_dir`` of its own.

    Args:
        file: The file.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> str:
        return "one"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        pass
