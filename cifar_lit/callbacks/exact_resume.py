"""What a checkpoint holds beside Lightning's own parts, so that a training resumes with the same bits."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from torchmetrics import Metric

from cifar_lit.errors import UserError
from cifar_lit.optim import accumulation


def get_random_state(*, of_torch_only: bool = False) -> tuple[Any, Any, Any, Any]:
    """Return the states of the global generators of torch on the CPU, of Python, of NumPy, and of a GPU if it is used.

    Those of torch take microseconds, the others some tens.
    """
    is_used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    of_torch, of_gpu = torch.get_rng_state(), torch.cuda.get_rng_state() if is_used else None
    others = (None, None) if of_torch_only else (random.getstate(), np.random.get_state())
    return (of_torch, *others, of_gpu)


def set_random_state(state: tuple[Any, Any, Any, Any]) -> None:
    """Restore what ``get_random_state`` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        random.setstate(state[1])
        np.random.set_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])


def digest_python_random() -> int:
    """Return a number that changes when the generator of Python or NumPy is drawn from."""
    state: Any = np.random.get_state()
    return hash((random.getstate(), state[1].tobytes(), state[2]))


class ExactResume(Checkpoint):
    """Saves and restores the position in the epoch, the metrics of an unfinished epoch, and the random numbers."""

    def __init__(self) -> None:
        self._num_batches = 0  # finished in this epoch
        self._epoch_size = 0  # in batches
        self._schedule_steps = 0.0  # that a learning-rate schedule was laid out for; 0 where it does not matter
        self._resumed: dict[str, Any] = {}
        self._should_stop = False

    def state_dict(self) -> dict[str, Any]:
        state, (version, words, gauss), (name, key, *position), of_gpu = get_random_state()
        randoms = {
            "random": state,
            "random_python": [version, torch.tensor(words), gauss],
            "random_numpy": [name, torch.from_numpy(key.astype(np.int64)), *position],
        }
        if of_gpu is not None:
            randoms["random_cuda"] = of_gpu
        return {"epoch_size": self._epoch_size, "schedule_steps": self._schedule_steps, **randoms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the metrics in an unfinished epoch, over all processes."""
        metrics = checkpoint["metrics"] = {}
        for name, metric in pl_module.named_modules():
            if isinstance(metric, Metric) and metric.update_called:
                with metric.sync_context():
                    metrics[name] = {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()}
        checkpoint["world_size"], checkpoint["precision"] = trainer.world_size, str(trainer.precision)
        # At the end of an epoch EarlyStopping decided. A limit on the time may differ when the training resumes.
        timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        is_timed_out = any(seconds is not None and seconds <= 0 for seconds in timers)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        # A callback of the user's saves before this one has begun to count anew.
        is_at_end = epoch.ready == epoch.processed and self._num_batches in (0, self._epoch_size)
        checkpoint["should_stop"] = trainer.should_stop and is_at_end and not is_timed_out

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics, in one process, because their states are added up."""
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        if loop["epoch_progress"]["current"]["ready"] == loop["epoch_progress"]["current"]["processed"]:
            # The epoch was finished. With max_steps, Lightning 2.6 takes its batches for those of the next epoch.
            for progress in loop["epoch_progress"].values():
                progress["completed"] = progress["processed"]
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
        # An exception may have ended the step after those that are saved: its batch, which is trained again, was begun.
        batches["is_last_batch"] &= batches["current"]["ready"] == batches["current"]["processed"]
        for name in ("total", "current"):
            batches[name] |= dict.fromkeys(("ready", "started"), batches[name]["processed"])
        now = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        was_left_out = any(key.startswith("EarlyStopping") and key not in now for key in checkpoint["callbacks"])
        self._should_stop = bool(checkpoint.get("should_stop")) and not was_left_out
        metrics = checkpoint.get("metrics", {})
        if metrics and checkpoint["world_size"] != trainer.world_size:
            raise UserError(
                f"`devices`: the checkpoint was saved in the middle of an epoch by {checkpoint['world_size']} "
                f"processes, and there are {trainer.world_size}: start as many"
            )
        for name, states in metrics.items() if trainer.is_global_zero else ():
            metric = pl_module.get_submodule(name)
            for key, value in states.items():
                setattr(metric, key, value.to(metric.device))

    def restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what Lightning leaves, before the first step; refuse what cannot be resumed exactly."""
        self._epoch_size = int(trainer.num_training_batches)
        if pl_module.hparams.get("schedule", "constant") != "constant" and trainer.lr_scheduler_configs:
            self._schedule_steps = float(trainer.estimated_stepping_batches)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        self._num_batches = 0 if epoch.ready == epoch.processed else batches.processed
        trainer.should_stop |= self._should_stop
        if not self._resumed:
            return
        self._check_lengths(accumulation(trainer, epoch.processed))
        if self._num_batches:
            loader: Any = trainer.train_dataloader
            loader.start_at(self._num_batches)
        self._restore_random(trainer)
        self._resumed = {}

    def _check_lengths(self, accumulated: int) -> None:
        """Refuse a training whose epochs or schedule have another length than when it was saved."""
        saved_size = self._resumed.get("epoch_size", self._epoch_size)
        if self._num_batches and saved_size != self._epoch_size:
            raise UserError(
                f"`limit_train_batches`: the checkpoint was saved in the middle of an epoch of {saved_size} "
                f"batches, and there are {self._epoch_size}: give the same"
            )
        if self._num_batches < self._epoch_size and self._num_batches % accumulated:
            raise UserError(
                f"`accumulate_grad_batches`: the checkpoint was saved after {self._num_batches} batches of an epoch, "
                f"within a step of {accumulated}, whose gradients it has not: give last.ckpt, or as many as before"
            )
        saved_steps = self._resumed.get("schedule_steps", self._schedule_steps)
        if saved_steps != self._schedule_steps:
            raise UserError(
                f"the `schedule` of the checkpoint was laid out for {saved_steps:,.0f} steps, and these options make "
                f"{self._schedule_steps:,.0f}: give the same `max_epochs`, `max_steps`, `limit_train_batches`, "
                "`accumulate_grad_batches` and `devices`, or start a new run (only a constant learning rate can be "
                "trained for longer)"
            )

    def _restore_random(self, trainer: Trainer) -> None:
        saved = self._resumed
        state, python, numpy, of_gpu = get_random_state()
        if "random_python" in saved:
            version, words, gauss = saved["random_python"]
            python = version, tuple(words.tolist()), gauss
            name, key, *position = saved["random_numpy"]
            numpy = name, key.numpy().astype(np.uint32), *position
        if trainer.strategy.root_device.type == "cuda":
            of_gpu = saved.get("random_cuda", of_gpu)
        set_random_state((saved.get("random", state), python, numpy, of_gpu))
