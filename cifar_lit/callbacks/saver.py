"""When a training is saved, how it stops, and how it resumes at the exact step."""

import signal
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from cifar_lit.callbacks.nonfinite import DivergedError
from cifar_lit.errors import UserError, require
from cifar_lit.run import LAST, RunWriter
from cifar_lit.signals import SignalListener, exit_at_once_on_signals

AGREE_STEPS = 10
"""Steps between two agreements of several processes on whether to save or stop: each one is a message to all."""
SAVE = 1
"""A request beside the numbers of the signals that are handled, and below them."""


class Saver(Checkpoint):
    """Saves ``last.ckpt``, stops on signals, and resumes exactly.

    It saves at the end of each epoch, on request between steps, and once when a signal or an exception ends the
    training. Beside what Lightning saves, a checkpoint holds the length of the epoch, the state of the metrics in the
    interrupted epoch, and the state of the random number generators.

    A training can resume where all gradients were used, or at the end of an epoch: saves and stops wait for that.

    Args:
        run: The folder that is written; only the first process has one.
        keep: Whether to save checkpoints.
        every_n_steps: Save within an epoch, too, every so many optimizer steps; 0 for never.
        every_n_minutes: Save within an epoch, too, every so many minutes; 0 for never.
    """

    def __init__(
        self,
        run: RunWriter | None = None,
        *,
        keep: bool = True,
        every_n_steps: int = 0,
        every_n_minutes: float = 0.0,
    ) -> None:
        require("every_n_steps", every_n_steps, every_n_steps >= 0, "at least 0")
        require("every_n_minutes", every_n_minutes, every_n_minutes >= 0, "at least 0")
        self.run = run
        self.path = run.checkpoints / LAST if run and keep else None
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self._num_batches = 0  # finished in this epoch
        self._epoch_size = 0  # in batches
        self._buffers: list[Tensor] = []  # what a forward pass changes: the statistics of BatchNorm
        self._kept_buffers: list[Tensor] = []  # as the last finished step left them
        self._kept_random = torch.empty(0)
        self._signals = SignalListener()
        self._can_resume = False
        self._is_in_step = False
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._resumed: dict[str, Any] = {}
        self._should_stop = False

    def state_dict(self) -> dict[str, Any]:
        random = {"random": torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            random["random_cuda"] = torch.cuda.get_rng_state()
        return {"epoch_size": self._epoch_size, **random}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the metrics in an unfinished epoch, over all processes."""
        metrics = checkpoint["metrics"] = {}
        for name, metric in pl_module.named_modules():
            if isinstance(metric, Metric) and metric.update_called:
                with metric.sync_context():
                    metrics[name] = {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()}
        checkpoint["world_size"] = trainer.world_size
        # At the end of an epoch EarlyStopping decided; within one it was a limit on the time, which may differ then.
        checkpoint["should_stop"] = trainer.should_stop and self._num_batches == 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics, in one process, because their states are added up."""
        loop = checkpoint["loops"]["fit_loop"]
        if loop["epoch_progress"]["current"]["ready"] == loop["epoch_progress"]["current"]["processed"]:
            # The epoch was finished. With max_steps, Lightning 2.6 takes its batches for those of the next epoch.
            for progress in loop["epoch_progress"].values():
                progress["completed"] = progress["processed"]
            batches = loop["epoch_loop.batch_progress"]
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
        self._should_stop = bool(checkpoint.get("should_stop"))
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the position in the epoch and the random numbers, and handle signals."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._epoch_size = int(trainer.num_training_batches)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        self._num_batches = 0 if epoch.ready == epoch.processed else batches.processed
        if self._num_batches:
            saved_size = self._resumed.get("epoch_size", self._epoch_size)
            if saved_size != self._epoch_size:
                raise UserError(
                    f"`limit_train_batches`: the checkpoint was saved in the middle of an epoch of {saved_size} "
                    f"batches, and there are {self._epoch_size}: give the same"
                )
            loader: Any = trainer.train_dataloader
            loader.start_at(self._num_batches)
        trainer.should_stop |= self._should_stop
        self._buffers = list(pl_module.buffers())
        self._kept_buffers = [buffer.clone() for buffer in self._buffers]
        if self._resumed:
            torch.set_rng_state(self._resumed["random"])
            if "random_cuda" in self._resumed and trainer.strategy.root_device.type == "cuda":
                torch.cuda.set_rng_state(self._resumed["random_cuda"])
        self._resumed = {}
        self._signals.listen()

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Note that from here on the weights may be between two steps."""
        self._is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.run is not None:
            self.run.start()
        self._is_in_step = False
        self._num_batches = num_batches = batch_idx + 1
        is_last = num_batches >= self._epoch_size
        self._can_resume = not (is_last or num_batches % trainer.accumulate_grad_batches)
        if not self._can_resume:
            return
        self._kept_random = torch.get_rng_state()
        torch._foreach_copy_(self._kept_buffers, self._buffers)
        request = self._agree(trainer, self._request())
        every = self.every_n_steps
        is_due = every and trainer.global_step // every > self._saved_step // every
        # max_steps and max_time end the epoch here; a run that resumes trains the rest of it.
        ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and not self._should_stop)
        self._should_stop = trainer.should_stop
        if request or is_due or ends:
            self._save(trainer)
        self._obey(trainer, request)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside a training, let signals end the process at once."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            exit_at_once_on_signals()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        exit_at_once_on_signals()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._num_batches == self._epoch_size or self._saved_step < trainer.global_step:
            self._num_batches = 0
            self._save(trainer)
        self._can_resume = False
        self._obey(trainer, self._agree(trainer, self._signals.received, now=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal has come since, and let later ones end the process at once."""
        self._obey(trainer, self._agree(trainer, self._signals.received, now=True))
        exit_at_once_on_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step, if the training was between two steps and runs in one process."""
        is_ours = isinstance(exception, SystemExit | DivergedError | OSError)  # OSError: perhaps from saving
        if is_ours or self._is_in_step or not self._can_resume or trainer.world_size > 1 or not trainer.training:
            return
        if trainer.global_step > self._saved_step:
            # Undo what the forward pass of the failed step changed.
            torch.set_rng_state(self._kept_random)
            torch._foreach_copy_(self._buffers, self._kept_buffers)
            try:
                self._save(trainer)
            except (OSError, DivergedError) as error:
                print(f"not saved: {error}", file=sys.stderr)

    def _save(self, trainer: Trainer) -> None:
        if self.path is None:
            return
        for logger in trainer.loggers:
            logger.save()  # the curves up to here are on the disk, too
        trainer.save_checkpoint(self.path, weights_only=False)  # atomic: SafeCheckpointIO
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _request(self) -> int:
        """Return what this process asks for: a signal's number, SAVE, or 0."""
        if self._signals.received:
            return self._signals.received
        minutes = self.every_n_minutes
        return SAVE if minutes and time.monotonic() - self._saved_at >= 60 * minutes else 0

    def _agree(self, trainer: Trainer, request: int, *, now: bool = False) -> int:
        """Return the request of all processes, which they must see at the same step."""
        if trainer.world_size == 1:
            return request
        if not now and self._num_batches % AGREE_STEPS:
            return 0
        return int(trainer.strategy.reduce(torch.tensor(request, device=trainer.strategy.root_device), reduce_op="max"))

    def _obey(self, trainer: Trainer, request: int) -> None:
        """Stop on a signal, once all is saved; on SLURM's, do what Lightning does."""
        if request <= SAVE:
            return
        if self._signals.requeue(request):
            return
        if trainer.is_global_zero:
            name, saved = signal.Signals(request).name, f"; --ckpt_path {self.path} resumes it" if self.path else ""
            print(f"\nstopped by {name} in epoch {trainer.current_epoch + 1}{saved}", flush=True)
        raise SystemExit(128 + request)
