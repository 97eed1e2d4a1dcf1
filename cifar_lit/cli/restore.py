"""The training state of a checkpoint: checked against that of the training which takes it over."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cifar_lit.errors import UserError, raised_in
from cifar_lit.run import Run

STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "global_step")
RESTORING = ("lightning.pytorch.trainer.connectors.checkpoint_connector", "cifar_lit.callbacks.")
"""Where a state is restored, in functions that are called so: an error there is one of the file's."""
OURS = {"cifar_lit", "lightning", "torch", "torchmetrics", "packaging", *sys.stdlib_module_names}
"""Packages whose errors there are not those of the user's own code."""
MAX_NUMBER = 1e15


def check_has_state(run: Run) -> None:
    """Refuse a checkpoint without training state, or with one of another form."""
    run.data_options  # noqa: B018 (which an export does not have)
    if missing := [name for name in STATE if name not in run.checkpoint]:
        raise UserError(
            f"{run.file} holds weights alone ({', '.join(missing)} missing), from which no training resumes: give the "
            "last.ckpt of a run"
        )
    fit_loop = run.checkpoint["loops"].get("fit_loop")
    if _differs({"epoch_progress": {"current": {"processed": 0}}}, fit_loop, is_complete=True):
        raise _damaged(run, "epochs")


@contextlib.contextmanager
def restoring(resumed: Run | None, trainer: Trainer) -> Iterator[None]:
    """Name the checkpoint, in one line, if its training state does not fit the training within."""
    if resumed is None:
        yield
        return
    _check_state(resumed, trainer)
    trainer.callbacks.append(_CheckOptimizers(resumed))  # type: ignore[attr-defined]
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever Lightning and torch raise for a state of another form
        calls = raised_in(error)
        restores = any(name.startswith(RESTORING) and function.strip("_").startswith("re") for name, function in calls)
        if not restores or calls[-1][0].partition(".")[0] not in OURS:
            raise
        raise _damaged(resumed, f"{type(error).__name__}: {error}") from error


def _damaged(run: Run, where: str) -> UserError:
    return UserError(f"{run.file} cannot be resumed: its training state is of another form ({where:.200})")


def _check_state(run: Run, trainer: Trainer) -> None:
    """Compare the state of loops and callbacks with the one that they have before the training."""
    if _differs(trainer.fit_loop.state_dict(), run.checkpoint["loops"]["fit_loop"]):
        raise _damaged(run, "loops")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = run.checkpoint["callbacks"].get(callback.state_key)
        if state is None or type(callback).__module__.split(".")[0] not in OURS:
            continue
        is_odd = _differs(callback.state_dict(), state)
        if isinstance(callback, ModelCheckpoint) and not is_odd:
            scores = [*state.get("best_k_models", {}).values(), state.get("best_model_score")]
            is_odd = any(score is not None and _differs(Tensor([0])[0], score) for score in scores)
        if is_odd:
            raise _damaged(run, type(callback).__name__)


def _differs(expected: Any, state: Any, *, is_complete: bool = False) -> bool:
    """Return whether a state is of another form: types and shapes; what only one of the two has is not compared."""
    match expected:
        case Tensor():
            is_same = isinstance(state, Tensor) and state.is_floating_point() == expected.is_floating_point()
            return not is_same or state.shape != expected.shape
        case Mapping():
            if not isinstance(state, Mapping) or (is_complete and not expected.keys() <= state.keys()):
                return True
            return any(_differs(expected[key], state[key], is_complete=is_complete) for key in expected if key in state)
        case list() | tuple():
            is_same = isinstance(state, list | tuple) and len(state) == (len(expected) or len(state))
            return not is_same or any(map(_differs, expected, state))
        case bool() | str():
            return type(state) is not type(expected)
        case int() | float():
            is_number = isinstance(state, int | float) and not isinstance(state, bool)
            return not is_number or (abs(state) > MAX_NUMBER and abs(state) != math.inf)
    return False


class _CheckOptimizers(Callback):
    """Refuses a state that does not fit the optimizers and schedulers, before the first step."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, configs = self.run.checkpoint, trainer.lr_scheduler_configs
        if (len(found["optimizer_states"]), len(found["lr_schedulers"])) != (len(trainer.optimizers), len(configs)):
            raise _damaged(self.run, "optimizers")
        for optimizer in trainer.optimizers:
            is_odd = any(_differs(optimizer.defaults, group) for group in optimizer.param_groups)
            is_odd |= any(_is_odd_state(weights, state) for weights, state in optimizer.state.items())
            if is_odd:
                raise _damaged(self.run, type(optimizer).__name__)
        for config, state in zip(configs, found["lr_schedulers"], strict=True):
            scheduler: Any = config.scheduler
            rates = [1.0] * len(scheduler.optimizer.param_groups)
            expected = {"last_epoch": 0, "_step_count": 0, "base_lrs": rates, "_last_lr": rates}
            replaced = [name for name in state if callable(getattr(type(scheduler), str(name), None))]
            if _differs(expected, vars(scheduler)) or replaced or "optimizer" in state:
                raise _damaged(self.run, type(scheduler).__name__)


def _is_odd_state(weights: Any, state: Any) -> bool:
    """Return whether an optimizer's state of a parameter does not fit it: tensors of its shape, and a step."""
    if not isinstance(weights, Tensor) or not isinstance(state, Mapping):
        return True
    return any(
        part.ndim and part.shape != weights.shape
        if isinstance(part, Tensor)
        else part is not None and (name != "step" or _differs(0, part))
        for name, part in state.items()
    )
