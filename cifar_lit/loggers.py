"""What loggers get: a point per epoch (from 1), the result of a test, and the hyper-parameters that matter."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.fabric.loggers.logger import Logger
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torchmetrics import Metric

BEST_METRIC = "best/Accuracy/val"
"""The metric of TensorBoard's page of hyper-parameters. Never that of test: hyper-parameters are compared by it."""


def log_metrics(module: LightningModule, values: Mapping[str, Metric | float]) -> None:
    """Log what an epoch came to, for checkpoints, progress bar, results and loggers; metrics begin anew."""
    computed = {name: float(v.compute() if isinstance(v, Metric) else v) for name, v in values.items()}
    for metric in (value for value in values.values() if isinstance(value, Metric)):
        metric.reset()
    # The metrics are already those of all processes.
    # `trainer.test` and `trainer.validate` return what is logged by the Trainer.
    trainer = module.trainer
    is_fit = trainer.state.fn == "fit"
    module.log_dict(computed, on_step=False, on_epoch=True, logger=False if is_fit else None)
    # Not through the Trainer, which logs after the checkpoint of the epoch: a run killed in between lacked a point.
    # The x-axis is the epoch, as in the tutorial. Validating a checkpoint later adds no point.
    if is_fit and not trainer.sanity_checking:
        log_epoch(module.loggers, computed, module.current_epoch + 1)
    elif trainer.state.fn == "test":
        log_test(module.loggers, computed, module.current_epoch)
    if not is_fit and module.loggers:
        trainer.loggers = [SkipOnce(trainer)]


def log_epoch(loggers: Iterable[Logger], values: Mapping[str, float], epoch: int) -> None:
    """Log a point at an epoch, from 1: once k epochs are done, the last point is at k."""
    for logger in loggers:
        logger.log_metrics(dict(values), step=epoch)


def log_test(loggers: Iterable[Logger], values: Mapping[str, float], num_epochs: int) -> None:
    """Log the metrics of a test after so many epochs; in TensorBoard as a table, where each would be a curve of one."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            rows = [f"| {name.replace('|', '&#124;')} | {value:.4f} |" for name, value in values.items()]
            table = "\n".join(("| metric | value |", "|---|---|", *rows))
            logger.experiment.add_text("Metrics/test", table, num_epochs)
        else:
            logger.log_metrics(dict(values), step=num_epochs)


def log_options(logger: TensorBoardLogger, options: Mapping[str, Any], accuracy: float, num_epochs: int) -> None:
    """Show a few options on TensorBoard's page of hyper-parameters; ``hparams.yaml`` has all."""
    from torch.utils.tensorboard.summary import hparams

    metrics = {BEST_METRIC: accuracy}
    logger.log_metrics(metrics, step=num_epochs)
    # Without the first, the columns: TensorBoard would take those of one run for all, and not put what differs first.
    for summary in hparams(dict(options), metrics)[1:]:  # type: ignore[no-untyped-call]
        logger.experiment._get_file_writer().add_summary(summary)  # as Lightning does


class SkipOnce(DummyLogger):
    """Takes the place of the loggers when the Trainer logs at the end of a test or validation, where they have all."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.loggers = trainer, trainer.loggers

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing, and let the loggers come back."""
        self.trainer.loggers = self.loggers
