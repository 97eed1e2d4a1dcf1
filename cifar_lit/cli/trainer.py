"""The Trainer of a fit, with the folder and the logger of the run."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelSummary,
    WeightAveraging,
)
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.callbacks.bars import CloseBars
from cifar_lit.callbacks.history import History
from cifar_lit.callbacks.progress import NetworkSummary, ProgressBar
from cifar_lit.callbacks.steps import StepCurve
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.options import check_callbacks, check_devices_used, check_plugins, check_timers, secure_strategy
from cifar_lit.cli.resume import epochs_done
from cifar_lit.errors import UserError, raised_in
from cifar_lit.evaluation.score import restore_nothing
from cifar_lit.machine import set_up
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import evaluation_mode
from cifar_lit.run import LOGS, Run
from cifar_lit.run_writer import RunWriter


@contextlib.contextmanager
def open_run(cli: FitCLI, resumed: Run | None) -> Iterator[RunWriter | None]:
    """Open the folder of a fit, in the first process, if something is written into it."""
    options = cli.trainer_options
    is_written = not options["fast_dev_run"] and (options["logger"] is not False or cli.keeps_checkpoints)
    run = rank_zero_only(_open)(cli, resumed) if is_written else None
    try:
        if run:
            # The weights, at most two more numbers for each in the optimizer, and perhaps their average.
            run.check_space(sum(4 * 4 * weights.numel() for weights in cli.model.parameters()) + 100_000)
        yield run
    except (OSError, UserError):
        raise
    except Exception as error:
        kind = _at_fault(error, [*_as_list(options["callbacks"]), *_as_list(options["logger"])])
        if kind is None:
            raise
        raise UserError(f"--trainer: {kind.__name__} cannot be used so: {str(error).replace('`', '')}") from error
    finally:
        if run:
            run.close()


def _at_fault(error: Exception, given: Sequence[Any]) -> type | None:
    """Return the class of Lightning, of those that the user gave, that raised an error, or had torch raise it."""
    module = [name for name, _ in raised_in(error) if name.partition(".")[0] != "torch"][-1]
    kinds = [kind for one in given for kind in type(one).__mro__ if kind.__module__.startswith("lightning.")]
    return next((kind for kind in kinds if kind.__module__ == module), None)


def _open(cli: FitCLI, resumed: Run | None) -> RunWriter:
    if resumed and (folder := resumed.folder_to_write):
        return RunWriter(folder, cli.dump(), is_new=False)
    return RunWriter.create(Path(cli.trainer_options["default_root_dir"] or "."), cli.dump())


def check_callbacks_of_trial(cli: FitCLI) -> None:
    """Refuse callbacks that save, log or draw, as only the result of the run is kept, and those that fit refuses."""
    callbacks = _as_list(cli.trainer_options["callbacks"])
    check_callbacks(callbacks, has_val=cli.has_val)
    for callback in callbacks:
        if isinstance(callback, Checkpoint | LightningProgressBar | LearningRateMonitor | DeviceStatsMonitor):
            name = type(callback).__name__
            raise UserError(f"--trainer.callbacks has {name}, and a run leaves only its result here: leave it out")


def build_trainer(cli: FitCLI, run: RunWriter | None, resumed: Run | None, own: Sequence[Callback]) -> Trainer:
    """Build the Trainer from its options, with our logger and callbacks where the user has not chosen others."""
    options = cli.trainer_options
    options["callbacks"] = _as_list(options["callbacks"])
    if cli.is_trial:
        check_callbacks_of_trial(cli)
    if options["enable_checkpointing"] is False and _has(options["callbacks"], Checkpoint):
        raise UserError("`enable_checkpointing` is False, and `callbacks` has one that saves: leave out one of the two")
    # A callback of the user's that saves at the end of an epoch finds its metrics in the history.
    own = sorted(own, key=lambda callback: not isinstance(callback, History))
    options["callbacks"] = [*own[:1], *options["callbacks"], *own[1:]]
    for flag, base, ours in (
        ("enable_progress_bar", LightningProgressBar, ProgressBar),
        ("enable_model_summary", ModelSummary, NetworkSummary),
    ):
        if options[flag] is not False and not _has(options["callbacks"], base):
            options["callbacks"].append(ours())
    if options["log_every_n_steps"]:
        # First, so that a checkpoint of the same step has its point.
        options["callbacks"].insert(0, StepCurve(options["log_every_n_steps"]))
    options["enable_checkpointing"] = True  # by our callbacks, which know whether to
    _place_files(options, run, resumed)
    if not cli.has_val:
        options["limit_val_batches"] = 0
    check_callbacks(options["callbacks"], has_val=cli.has_val, is_new=resumed is None)
    check_plugins(_as_list(options["plugins"]))
    trainer = make_trainer(options)
    check_timers(trainer.callbacks, options["max_time"])  # type: ignore[attr-defined]
    if str(trainer.precision) == "64-true" and _has(options["callbacks"], WeightAveraging):
        cli.model.double()  # the average is a copy that is made before the Trainer does so
    if not resumed and (cli.is_trial or options["fast_dev_run"]):
        restore_nothing(trainer)  # in a SLURM job it would go on with another training, which was put into the queue
    return trainer


def _place_files(options: dict[str, Any], run: RunWriter | None, resumed: Run | None) -> None:
    """Let loggers and callbacks write into the folder of the run."""
    if options["fast_dev_run"]:
        options["logger"] = False
    elif options["logger"] in (None, True):
        options["logger"] = _tensorboard_logger(run, resumed, options)
    elif options["logger"] is False and run:
        options["default_root_dir"] = str(run.path)
    elif run and not resumed:
        _share_folder(_as_list(options["logger"]), run)
    if resumed and resumed.folder:  # whatever its config.yaml says: callbacks write there
        options["default_root_dir"] = str(resumed.folder)


def make_trainer(options: dict[str, Any]) -> Trainer:
    """Build a Trainer, and prepare the machine for it; what Lightning refuses is a ``UserError``."""
    try:
        trainer = Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        if raised_in(error)[-1][0].partition(".")[0] != "lightning":
            raise
        raise UserError(f"--trainer: {error}") from error
    trainer.callbacks.append(CloseBars())  # type: ignore[attr-defined]
    secure_strategy(trainer.strategy, options.get("strategy"))
    check_devices_used(trainer.strategy, options.get("devices"), options.get("num_nodes", 1))
    set_up(trainer.strategy.root_device, str(trainer.precision), benchmark=options.get("benchmark"))
    return trainer


def _share_folder(loggers: Sequence[Any], run: RunWriter) -> None:
    """Let a logger of the user's that would make a folder of its own beside that of the run write into the latter."""
    for logger in loggers:
        is_file_logger = isinstance(logger, TensorBoardLogger | CSVLogger) and logger._version is None
        if is_file_logger and Path(logger.root_dir).resolve() == run.path.parent.resolve():
            # The CSVLogger's file has the name of ours.
            logger._version = f"{run.path.name}/csv" if isinstance(logger, CSVLogger) else run.path.name


def _tensorboard_logger(
    run: RunWriter | None, resumed: Run | None, trainer_options: Mapping[str, Any]
) -> TensorBoardLogger:
    options: dict[str, Any] = {"default_hp_metric": False}
    if run is None:  # in all processes but the first, where it writes nothing
        return TensorBoardLogger(trainer_options["default_root_dir"] or ".", name=LOGS, **options)
    if resumed and resumed.folder:  # hides what the curves have of later epochs than the checkpoint
        options["purge_step"] = 1 + _last_point(resumed.checkpoint, trainer_options)
        run.order_events()
    folder = run.path
    return TensorBoardLogger(folder.parent.parent, name=folder.parent.name, version=folder.name, **options)


def _last_point(checkpoint: dict[str, Any], options: Mapping[str, Any]) -> int:
    """Return the last point that the curves keep: the last epoch, or step where nothing is left to train."""
    num_epochs, num_steps = epochs_done(checkpoint), int(checkpoint["global_step"])
    limits = ((num_epochs, options["max_epochs"]), (num_steps, options["max_steps"]))
    is_left = all(most in (None, -1) or done < most for done, most in limits)
    return num_epochs if is_left else max(num_epochs, num_steps)


def log_graph(trainer: Trainer, model: ImageClassifier) -> None:
    """Draw the network's graph in TensorBoard, with the example batch, in evaluation mode.

    TensorBoard's logger can draw it, too, but again for each validation and test, and with all metrics (#4885).
    """
    if not (trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)):
        return
    try:
        ignored = warnings.catch_warnings(action="ignore")  # of tracing len(images)
        with torch.no_grad(), evaluation_mode(model.net), ignored:
            # Traced here, because add_graph would compare the trace with the network, which takes four times as long.
            images = torch.as_tensor(model.example_input_array, dtype=model.mean.dtype)
            traced = torch.jit.trace(model.net, images, check_trace=False)  # type: ignore[no-untyped-call]
            trainer.logger.experiment.add_graph(traced, images)
    except OSError:
        raise  # of TensorBoard's file
    except Exception as error:  # tracing runs the user's network, which can be trained even if it cannot be traced
        print(f"no graph in TensorBoard: the network cannot be traced ({type(error).__name__})")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _has(values: Sequence[Any], kind: type) -> bool:
    return any(isinstance(value, kind) for value in values)
