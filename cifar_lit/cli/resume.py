"""Whether a run can resume with the given options."""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.callbacks.best import MONITORED
from cifar_lit.checkpoint import plain_value
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.restore import check_has_state
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.files import shorten
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.base import describe_network
from cifar_lit.run import CHECKPOINTS, Run, read_history

MAY_DIFFER = ("root", "cache_dir", "mirror")


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    return {one.name: plain_value(one.default) for one in parameters if one.default is not one.empty}


def _completed(then: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield two descriptions of a network, each with the defaults of the options that only the other one has."""
    for one, other in ((then, now), (now, then)):
        missing = {name: defaults[name] for name in other["init_args"] if name in defaults}
        yield {**one, "init_args": {**missing, **one["init_args"]}}


def epochs_done(checkpoint: dict[str, Any]) -> int:
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def is_tested(run: Run) -> bool:
    """Return whether a run that has nothing left to train has nothing left to test either.

    The results of a shorter training, and those of weights that were replaced since, are of a test that came before.
    """
    results = run.results
    if run.folder is None or results is None or "Accuracy/test" not in results.metrics:
        return run.folder is None
    if results.epochs is not None and results.epochs < max(read_history(run.checkpoint), default=0):
        return False
    scored = run.folder / CHECKPOINTS / Path(results.checkpoint or "").name
    with contextlib.suppress(UserError):  # it is gone, or damaged: nothing else is known than the results
        return Run(scored, trust=run.trust).own_results is not None
    return True


def check_trained(resumed: Run, trainer: Trainer) -> None:
    """Refuse to test again, and to replace the results of, a run that had nothing left to train."""
    if trainer.global_step > resumed.checkpoint["global_step"] or not is_tested(resumed):
        return
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if trainer.global_step == trainer.max_steps:
        reason = f"`max_steps` is {trainer.max_steps}, and it has finished them: give more"
    elif any(seconds is not None and seconds <= 0 for seconds in timers):
        reason = "`max_time` is over: give more"
    else:
        reason = "it was stopped early: leave out what stopped it, as with --trainer.callbacks null"
    raise UserError(f"{shorten(resumed.path)} has nothing left to train, and stays as it is; {reason}")


def find_resumed(cli: FitCLI) -> Run | None:
    """Return the run that the options resume; None for a new one.

    Other settings of model or data are refused: the checkpoint's optimizer and split do not fit them.
    """
    path = cli.config["ckpt_path"]
    if path is None:
        return None
    run = Run(path, trust=cli.config["trust_run"])
    check_has_state(run)
    then, now = {**run.model_options, **run.data_options}, {**cli.model.hparams, **cli.datamodule.hparams}
    # What an older version, also of the network, had no option for.
    then = {**_defaults(ImageClassifier), **_defaults(CIFAR10DataModule), **then}
    then["net"], now["net"] = _completed(describe_network(then["net"]), now["net"], _defaults(type(cli.model.net)))
    if now["kernels"] == "auto":
        now["kernels"] = then["kernels"]  # whatever is faster now
    changed = [name for name in then if name not in MAY_DIFFER and then[name] != now.get(name)]
    if changed:
        differences = ", ".join(f"{name} {then[name]} (given: {now.get(name)})" for name in changed)
        way_out = "give the same" + (", or leave them out" if run.folder else "; the run's config.yaml is missing")
        raise UserError(f"--ckpt_path {path} resumes with its own settings of model and data: {differences}; {way_out}")
    monitor = run.config.get("checkpoint", {}).get("monitor", MONITORED[0])
    if run.folder and monitor != cli.saving[0]:
        raise UserError(f"`monitor` is {cli.saving[0]}, and best.ckpt of {path} is the best by {monitor}: leave it out")
    if not run.data_state:
        raise UserError(f"{path} was saved by an older version, which split the images otherwise: start a new run")
    cli.datamodule.load_state_dict(run.known_images)
    run.check_finite(cli.model)
    num_done, max_epochs = epochs_done(run.checkpoint), cli.trainer_options["max_epochs"]
    num_left = 1 if max_epochs in (None, -1) else int(max_epochs) - num_done
    if num_left < 0 or (num_left == 0 and is_tested(run)):
        raise UserError(f"`max_epochs` is {max_epochs}, and {path} has finished {num_done} epochs: give more")
    rank_zero_only(print)(f"resuming {path}: {num_done} epochs are done ({run.checkpoint['global_step']:,} steps)")
    return run
