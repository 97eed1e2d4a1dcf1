"""``cifar-lit fit``: train, keep the best checkpoint on validation, test it once, write everything down, show it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from cifar_lit.callbacks.best import Best
from cifar_lit.callbacks.history import History, MetricsFile
from cifar_lit.callbacks.nonfinite import NonFiniteGuard
from cifar_lit.callbacks.progress import EpochLines
from cifar_lit.callbacks.pruning import PruningCallback
from cifar_lit.callbacks.saver import Saver
from cifar_lit.callbacks.throughput import Throughput
from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.auto import settle
from cifar_lit.cli.config import expand_homes
from cifar_lit.cli.filters import filter_logs
from cifar_lit.cli.parser import naming_options
from cifar_lit.cli.restore import restoring
from cifar_lit.cli.resume import check_trained, find_resumed
from cifar_lit.cli.start import with_config
from cifar_lit.cli.terminal import lasting_output
from cifar_lit.cli.trainer import build_trainer, log_graph, open_run
from cifar_lit.errors import UserError
from cifar_lit.evaluation.multiplications import count_multiplications
from cifar_lit.evaluation.plots import log_figures
from cifar_lit.evaluation.report import write_report
from cifar_lit.evaluation.score import describe, score
from cifar_lit.evaluation.table import format_table
from cifar_lit.files import shorten
from cifar_lit.loggers import log_options
from cifar_lit.machine import describe_machine
from cifar_lit.networks.base import needed_trust
from cifar_lit.results import Results
from cifar_lit.run import REPORT
from cifar_lit.run_writer import RunWriter

SHOWN = (
    *("lr", "momentum", "weight_decay", "schedule", "muon_lr", "label_smoothing"),
    *("batch_size", "crop_padding", "flip", "cutout"),
)
"""Options of model and data on TensorBoard's page of hyper-parameters."""


def main(args: Sequence[str]) -> int:
    fit(args, command=shlex.join(["cifar-lit", "fit", *args]))
    return 0


def fit(args: Sequence[str], *, command: str = "", pruner: Callback | None = None) -> Results | None:
    """Train a model with the options ``args``, and test its best checkpoint once.

    A training with a ``pruner`` is a trial of a sweep: it is not tested, and neither is ``fast_dev_run``.
    """
    filter_logs()
    cli = FitCLI(with_config(expand_homes(args)), is_trial=bool(pruner))  # parses, seeds, builds model and data
    with naming_options(cli.names), lasting_output():
        resumed, (monitor, saving) = find_resumed(cli), cli.saving
        settle(cli, resumed)
        if isinstance(pruner, PruningCallback):
            pruner.judged_by = monitor
        with open_run(cli, resumed) as run:
            throughput = Throughput()
            best = Best(run.checkpoints if run else None, monitor) if cli.keeps_checkpoints and cli.has_val else None
            saver = Saver(run, keep=cli.keeps_checkpoints, **saving)
            guard = NonFiniteGuard(run.path if run and cli.keeps_checkpoints else None)
            history = History(throughput)
            lines = None if cli.trainer_options["enable_progress_bar"] is False else EpochLines(history)
            metrics_file = MetricsFile(history, run) if run else None
            # The saving ones last, in this order: a checkpoint has the metrics of its epoch.
            own = [pruner, throughput, guard, history, lines, best, saver, metrics_file]
            trainer = build_trainer(cli, run, resumed, [callback for callback in own if callback])
            saver.check_files(trainer)
            if not resumed:
                log_graph(trainer, cli.model)
            with restoring(resumed, trainer):
                trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=resumed.file if resumed else None)

            if pruner or cli.trainer_options["fast_dev_run"]:
                return None
            if resumed:
                check_trained(resumed, trainer)
            results = evaluate(cli, trainer, throughput, best, saver, command)
            if trainer.is_global_zero:
                show(cli, trainer, run, results)
            return results


def show(cli: FitCLI, trainer: Trainer, run: RunWriter | None, results: Results) -> None:
    """Write the results into the run's folder, and print their table."""
    write(cli, trainer, run, results)
    shown, trust = shorten(run.path) if run else None, needed_trust(cli.model.net)
    print("\n" + format_table(results, run=shown, trust=trust, has_report=cli.config["report"]))


def evaluate(
    cli: FitCLI, trainer: Trainer, throughput: Throughput, best: Best | None, saver: Saver, command: str
) -> Results:
    """Test the best checkpoint, or the last where there is no best."""
    if throughput.num_images == 0:
        options = ", ".join(f"`{name}`" for name in ("max_epochs", "max_steps", "max_time", "limit_train_batches"))
        raise UserError(f"nothing was trained, so there is nothing to test: give a higher {options}")
    checkpoint, is_best = find_tested(trainer, best, saver)
    step = take_weights(cli, checkpoint) if checkpoint else None
    val_metrics = best.metrics if best and is_best else {}  # those of the best epoch
    if best and is_best:
        cli.model.num_val = best.num_val

    def described(metrics: dict[str, Any]) -> Results:
        return describe(
            cli.model,
            cli.datamodule,
            metrics,
            checkpoint=shorten(checkpoint) if checkpoint else None,
            step=step,
            recipe=cli.config["recipe"],
            seed=cli.config["seed_everything"],
            epochs=trainer.current_epoch,
            best_epoch=best.best_epoch if best and is_best else None,
            monitor=best.monitor if best and is_best else None,
            train_seconds=throughput.train_seconds,
            images_per_second=throughput.images_per_second,
            multiplications=count_multiplications(cli.model, throughput.trained, trainer.global_step),
            command=command,
            precision=str(trainer.precision),
            **describe_machine(trainer.strategy.root_device),
        )

    if saver.run is not None:
        saver.run.save_results(described(val_metrics))  # what is known if the test fails or is stopped
    splits = ("test",) if val_metrics or not cli.has_val else ("val", "test")
    return described(val_metrics | score(trainer, cli.model, cli.datamodule, splits=splits))


def find_tested(trainer: Trainer, best: Best | None, saver: Saver) -> tuple[Path | None, bool]:
    """Return the checkpoint that is tested and whether it is the best: in all processes, what the first one finds."""
    is_best = best is not None and Path(best.best_model_path).is_file() and not saver.is_changed_at_end
    path = best.best_model_path if best and is_best else saver.path
    found: tuple[Path | None, bool] = (Path(path) if path and Path(path).is_file() else None, is_best)
    return trainer.strategy.broadcast(found)


def take_weights(cli: FitCLI, checkpoint: Path) -> int:
    """Give the model the weights of a checkpoint, and return its optimizer steps.

    Not through the Trainer: it would restore the callbacks, too, and with them the weights before averaging.
    """
    saved = load_checkpoint(checkpoint)
    cli.model.load_state_dict(saved["state_dict"])
    return int(saved["global_step"])


def write(cli: FitCLI, trainer: Trainer, run: RunWriter | None, results: Results) -> None:
    """Write the results, the report, and what TensorBoard shows of them."""
    model, datamodule, logger = cli.model, cli.datamodule, trainer.logger
    has_report = cli.config["report"] and run is not None
    images = datamodule.test.images if has_report and datamodule.test and model.predictions else None
    if run is not None:
        run.save_results(results)  # first, whatever becomes of what only shows them
    for one in trainer.loggers:
        one.save()  # the report reads the curves from the disk
    if run is not None and has_report:
        write_report(run.path / REPORT, results, model, images)
    if isinstance(logger, TensorBoardLogger):
        log_figures(logger, results, model, trainer.current_epoch, images)
        accuracy = results.metrics.get("Accuracy/val")
        if accuracy is not None and trainer.enable_autolog_hparams:
            log_options(logger, shown_options(cli, trainer), accuracy, trainer.current_epoch)
        logger.save()


def shown_options(cli: FitCLI, trainer: Trainer) -> dict[str, Any]:
    """Return the few options by which TensorBoard compares runs; of the network those that were given."""
    net, config = cli.model.hparams["net"], {**cli.model.hparams, **cli.datamodule.hparams}
    return {
        "recipe": cli.config["recipe"],
        "seed": cli.config["seed_everything"],
        "epochs": trainer.current_epoch,
        "net": net["class_path"].rpartition(".")[2],
        **{f"net.{name}": str(value) for name, value in net["init_args"].items()},
        **{name: config[name] for name in SHOWN},
    }
