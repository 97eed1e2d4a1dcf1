"""When a training is saved, and how it stops."""

import signal
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from cifar_lit.callbacks.bars import close_bars
from cifar_lit.callbacks.best import Best, saved_paths
from cifar_lit.callbacks.buffers import Buffers
from cifar_lit.callbacks.exact_resume import (
    ExactResume,
    digest_python_random,
    get_random_state,
    set_random_state,
)
from cifar_lit.callbacks.nonfinite import DivergedError
from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.errors import UserError, require
from cifar_lit.files import quote
from cifar_lit.networks.base import needed_trust
from cifar_lit.run import BEST, LAST
from cifar_lit.run_writer import RunWriter
from cifar_lit.signals import SignalListener, exit_at_once_on_signals

AGREE_STEPS = 10
"""Steps between two agreements of several processes on whether to save or stop: each one is a message to all."""
SAVE = 0.5
"""A request beside the numbers of the signals, and below them: of several requests the highest counts."""


class Saver(ExactResume):
    """Saves ``last.ckpt``, stops on signals, and resumes exactly.

    It saves at the end of each epoch, on request between steps, and once when a signal or an exception ends the
    training. Beside what Lightning saves, a checkpoint holds the length of the epoch, the state of the metrics in the
    interrupted epoch, and the state of the random number generators.

    A training can resume where all gradients were used, or at the end of an epoch: saves and stops wait for that.
    What cannot be saved or resumed is refused before the first step.

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
        super().__init__()
        self.run = run
        self.path = run.checkpoints / LAST if run and keep else None
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self._buffers: Buffers  # as the last finished step left them
        self._kept_random = get_random_state()
        self._draws_from_python = True  # or NumPy, in the first epoch or the one before
        self._epoch_random = 0
        self._signals = SignalListener()
        self._can_resume = False
        self._is_in_step = False
        self._is_stopping = False
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._is_current = False  # whether nothing was trained since the last save
        self.is_changed_at_end = False  # whether a callback changed the weights after the last epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.path = trainer.strategy.broadcast(self.path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check_files(trainer)

    def check_files(self, trainer: Trainer) -> None:
        """Refuse other callbacks that save under our names; again once Lightning has set their folders."""
        ours = [] if self.path is None else [self.path.with_name(name).resolve() for name in (BEST, LAST)]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            taken = (
                [] if isinstance(callback, Best | Saver) else [path for path in saved_paths(callback) if path in ours]
            )
            if taken:
                raise UserError(
                    f"`callbacks`: {type(callback).__name__} would overwrite {taken[0].name} of this run: "
                    "give it another `dirpath`, or another `filename` and no `save_last`"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what Lightning leaves, find out whether the state can be saved, and handle signals."""
        self.restore(trainer, pl_module)
        self._buffers = Buffers(pl_module)
        self._epoch_random = digest_python_random()
        self._try_save(trainer)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._signals.listen()

    def on_after_backward(self, trainer: Trainer, *args: Any) -> None:
        """Note that from here on the metrics, the gradients or the weights have a part of a batch."""
        self._is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.run is not None:
            self.run.start()
        self._is_in_step = self._is_current = False
        self._num_batches = num_batches = batch_idx + 1
        is_last = num_batches >= self._epoch_size
        is_between = is_last or num_batches % trainer.accumulate_grad_batches == 0
        self._is_stopping |= trainer.should_stop  # whoever stops the training within a step, stops it after that
        trainer.should_stop = self._is_stopping and is_between
        self._can_resume = is_between and not is_last
        if not self._can_resume:
            return
        self._kept_random = get_random_state(of_torch_only=not self._draws_from_python)
        self._buffers.keep()
        request = self._agree(trainer, self._request())
        every = self.every_n_steps
        is_due = every and trainer.global_step // every > self._saved_step // every
        # max_steps and max_time end the epoch here; a run that resumes trains the rest of it.
        ends = trainer.global_step == trainer.max_steps
        ends |= trainer.should_stop and trainer.fit_loop._can_stop_early  # not before min_epochs and min_steps
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
        before, self._epoch_random = self._epoch_random, digest_python_random()
        self._draws_from_python = self._epoch_random != before
        self._obey(trainer, self._agree(trainer, self._signals.received, now=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal has come since, let later ones end the process at once, and save what a callback changed."""
        self._obey(trainer, self._agree(trainer, self._signals.received, now=True))
        exit_at_once_on_signals()
        self.is_changed_at_end = bool(trainer.strategy.broadcast(self._is_changed(trainer, pl_module)))
        if self.is_changed_at_end:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last finished step, if the training was between two steps and runs in one process."""
        is_ours = isinstance(exception, SystemExit | DivergedError | OSError)  # OSError: perhaps from saving
        if is_ours or self._is_in_step or not self._can_resume or trainer.world_size > 1 or not trainer.training:
            return
        if trainer.global_step > self._saved_step:
            # Undo what the forward pass of the failed step changed.
            set_random_state(self._kept_random)
            self._buffers.restore()
            try:
                self._save(trainer)
            except (OSError, UserError) as error:
                print(f"not saved: {error}", file=sys.stderr)

    def _is_changed(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether the weights are others than those in ``last.ckpt``."""
        ended = trainer.strategy.lightning_module_state_dict()
        if self.path is None or not self.path.is_file():
            return False
        saved = load_checkpoint(self.path)["state_dict"]
        # Batches that were dropped, because not all gradients were used, may have changed buffers.
        names = ended if self._is_current else dict(pl_module.named_parameters())
        # An average of the weights is in float32, also where they are in bfloat16.
        saved = {name: part.to(ended[name].dtype) for name, part in saved.items() if name in ended}
        return any(name not in saved or not torch.equal(saved[name], ended[name].cpu()) for name in names)

    def _save(self, trainer: Trainer) -> None:
        if self.path is None:
            return
        for logger in trainer.loggers:
            logger.save()  # the curves up to here are on the disk, too
        try:
            trainer.save_checkpoint(self.path, weights_only=False)  # atomic: SafeCheckpointIO
        except UserError as error:
            error.exit_code = 1  # it could be saved before the first step
            raise
        self._saved_step, self._saved_at, self._is_current = trainer.global_step, time.monotonic(), True
        if self.run is not None:
            self.run.mark_last()

    def _try_save(self, trainer: Trainer) -> None:
        """Save a checkpoint and remove it: what cannot be saved is found before there is a training to lose."""
        if self.path is not None:
            probe = self.path.with_name(f".{self.path.name}.part")  # which the next training removes if this is killed
            trainer.save_checkpoint(probe, weights_only=False)
            trainer.strategy.remove_checkpoint(probe)

    def _request(self) -> float:
        """Return what this process asks for: a signal's number, SAVE, or 0."""
        if self._signals.received:
            return self._signals.received
        minutes = self.every_n_minutes
        return SAVE if minutes and time.monotonic() - self._saved_at >= 60 * minutes else 0

    def _agree(self, trainer: Trainer, request: float, *, now: bool = False) -> float:
        """Return the request of all processes, which they must see at the same step."""
        if trainer.world_size == 1:
            return request
        if not now and trainer.global_step % AGREE_STEPS:
            return 0
        requests = torch.tensor(float(request), device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(requests, reduce_op="max"))

    def _obey(self, trainer: Trainer, request: float) -> None:
        """Stop on a signal, once all is saved; on SLURM's, do what Lightning does."""
        if request <= SAVE:
            return
        signum = int(request)
        if self._signals.requeue(signum):
            return
        if trainer.is_global_zero:
            trust = needed_trust(trainer.lightning_module.get_submodule("net"))
            option = f"--ckpt_path {quote(str(self.path))}{trust}"
            name, saved = signal.Signals(signum).name, f"; {option} resumes it" if self.path else ""
            close_bars(trainer)
            print(f"stopped by {name} in epoch {trainer.current_epoch + 1}{saved}", flush=True)
        raise SystemExit(128 + signum)
