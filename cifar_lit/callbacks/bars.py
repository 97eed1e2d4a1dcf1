"""Progress bars end where a training is stopped by an error."""

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm


class CloseBars(Callback):
    """Closes the progress bar, whosever it is, on an error, whose line then begins below it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        close_bars(trainer)


def close_bars(trainer: Trainer) -> None:
    """End the bars of tqdm, which are otherwise drawn once more when they are collected, below an error."""
    shown = trainer.progress_bar_callback
    bars = [part for part in vars(shown).values() if isinstance(part, tqdm)] if shown else []
    for bar in reversed(bars):  # the one of the training is the upper one
        bar.close()
