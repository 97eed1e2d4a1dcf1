"""Filters for log messages and warnings that say nothing about the run."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

NOISE = re.compile("Tip:|TPU available|model summary callbacks|Restoring states|Loaded model|`Trainer.fit` stopped")


def filter_logs() -> None:
    """Install the filters, for the whole process."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logger = logging.getLogger(name)
        if _is_relevant not in logger.filters:
            logger.addFilter(_is_relevant)
    for message in (
        # Lightning 2.6 calls newer torch in an old way, and so does TensorBoard for the graph.
        ".*LeafSpec.*",
        ".*torch.jit.trace.*",
        # We log per epoch, so an interval of steps means nothing.
        ".*smaller than the logging interval.*",
        # The summary's line on the size of the weights.
        ".*not supported by the model summary.*",
        # The metrics add up over the processes by themselves.
        ".*sync_dist=True.*",
        # A resumed run writes into its own folder.
        ".*exists and is not empty.*",
        # The Saver sets the loader's position.
        ".*dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module="PIL")  # errors in images are reported by read_image


def _is_relevant(record: logging.LogRecord) -> bool:
    return not NOISE.search(record.getMessage())


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Suppress what each further Trainer repeats: the seed, and what the machine has."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
