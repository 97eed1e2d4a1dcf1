"""When a training is saved, how it is stopped, and how it goes on at the very step."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from cifar_lit.signals import end_at_once_on_signals

LOSS_CHECK_STEPS = 50
"""Steps between two looks at the losses: each one waits for the device."""
AGREE_STEPS = 10
"""Steps between two agreements of several processes on whether to save or stop: each one is a message to all."""
SAVE = 1
"""A request beside the numbers of the signals that are listened to, and below them."""


class Saver(Checkpoint):
    """Saves ``last.ckpt``, stops on signals and on losses that are no numbers, and resumes exactly.

    It saves at the end of each epoch, on request between steps, and once when a signal or an exception ends the
    training. A checkpoint holds, beside what Lightning puts there, the place in the epoch, what the metrics of the
    broken epoch have counted, and the state of the random numbers.

    Within an epoch a training can be taken up where all gradients were used. Elsewhere a save or a stop waits for the
    next such place; after the last step it waits for validation and the end of the epoch.

    Args:
        every_n_steps: Steps of the optimizer between two saves within an epoch; 0 for none.
        every_n_minutes: Minutes between two saves within an epoch; 0 for none.
        keep: Whether to save at all.

    Attributes:
        path: Where ``last.ckpt`` is; None before a fit, and where nothing is saved.
    """

    def __init__(self, *, every_n_steps: int = 0, every_n_minutes: float = 0.0, keep: bool = True) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if not value >= 0:
                raise ValueError(f"--checkpoint.{name} is {value}: give 0 or more")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.path: Path | None = None
        self._num_batches = 0  # of this epoch that are done
        self._epoch_size = 0  # in batches
        self._buffers: list[Tensor] = []  # what a forward pass changes: the statistics of BatchNorm
        self._kept_buffers: list[Tensor] = []  # as the last finished step left them
        self._kept_random = torch.empty(0)
        self._losses: list[Tensor] = []
        self._signum = 0
        self._requeue: Any = None
        self._can_resume = False
        self._is_in_step = False
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._resumed: dict[str, Any] = {}
        self._should_stop = False

    # What is saved, and how it is taken up.

    def state_dict(self) -> dict[str, Any]:
        """Give the state of the random numbers, and how long an epoch is; the place in it is in Lightning's hands."""
        random = {"random": torch.get_rng_state()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            random["random_cuda"] = torch.cuda.get_rng_state()
        return {"epoch_size": self._epoch_size, **random}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what ``on_train_start`` sets.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self._resumed = dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the metrics have counted of an epoch that is not over, all processes together."""
        metrics = checkpoint["metrics"] = {}
        for name, metric in pl_module.named_modules():
            if isinstance(metric, Metric) and metric.update_called:
                with metric.sync_context():
                    metrics[name] = {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()}
        checkpoint["world_size"] = trainer.world_size
        # EarlyStopping's word; within an epoch it is that of a limit on the time, which may be another one then.
        checkpoint["should_stop"] = trainer.should_stop and self._num_batches == 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what the metrics had counted, in one process, for they add up."""
        loop = checkpoint["loops"]["fit_loop"]
        if loop["epoch_progress"]["current"]["ready"] == loop["epoch_progress"]["current"]["processed"]:
            # The epoch is over. With max_steps Lightning would take its batches for those of the next one.
            for progress in loop["epoch_progress"].values():
                progress["completed"] = progress["processed"]
            batches = loop["epoch_loop.batch_progress"]
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
        self._should_stop = bool(checkpoint.get("should_stop"))
        metrics = checkpoint.get("metrics", {})
        if metrics and checkpoint["world_size"] != trainer.world_size:
            raise ValueError(
                f"--trainer.devices: the checkpoint was saved in the middle of an epoch by {checkpoint['world_size']} "
                f"processes, and there are {trainer.world_size}: start as many"
            )
        for name, states in metrics.items() if trainer.is_global_zero else ():
            metric = pl_module.get_submodule(name)
            for key, value in states.items():
                setattr(metric, key, value.to(metric.device))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out where the checkpoints of a fit go."""
        if stage == "fit" and self.keep:
            self.path = Path(trainer.log_dir or ".") / "checkpoints" / "last.ckpt"  # on every rank: they agree on it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go where the training was, and listen to signals."""
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._epoch_size = int(trainer.num_training_batches)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        self._num_batches = 0 if epoch.ready == epoch.processed else batches.processed
        if self._num_batches and self._resumed.get("epoch_size", self._epoch_size) != self._epoch_size:
            raise ValueError(
                f"--trainer.limit_train_batches: the checkpoint was saved in the middle of an epoch of "
                f"{self._resumed['epoch_size']} batches, and there are {self._epoch_size}: give the same"
            )
        # Not left to Lightning: it forgets the loader's place where a schedule asked for the number of steps.
        loader: Any = trainer.train_dataloader
        loader.load_state_dict({"num_batches": self._num_batches})
        trainer.should_stop |= self._should_stop
        self._buffers = list(pl_module.buffers())
        self._kept_buffers = [buffer.clone() for buffer in self._buffers]
        if self._resumed:
            torch.set_rng_state(self._resumed["random"])
            if "random_cuda" in self._resumed and trainer.strategy.root_device.type == "cuda":
                torch.cuda.set_rng_state(self._resumed["random_cuda"])
        self._resumed = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._stop_later)
            if hasattr(signal, "SIGUSR1") and callable(requeue := signal.getsignal(signal.SIGUSR1)):
                self._requeue = requeue  # Lightning's, on a SLURM cluster; it would save in the middle of a step
                signal.signal(signal.SIGUSR1, self._stop_later)

    # What happens at each step.

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Note that from here on the weights may be between two steps."""
        self._is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after the loss, save where that is due, and stop where a signal has come."""
        self._is_in_step = False
        self._num_batches = num_batches = batch_idx + 1
        self._losses.append(outputs["loss"])
        is_last = num_batches >= self._epoch_size
        if is_last or len(self._losses) >= LOSS_CHECK_STEPS:
            self._check_losses(trainer)
        self._can_resume = not (is_last or num_batches % trainer.accumulate_grad_batches)
        if not self._can_resume:
            return
        self._kept_random = torch.get_rng_state()
        torch._foreach_copy_(self._kept_buffers, self._buffers)
        request = self._agree(trainer, self._request())
        every = self.every_n_steps
        is_due = every and trainer.global_step // every > self._saved_step // every
        # max_steps and max_time end the epoch here; what is left of it is trained by a run that goes on.
        ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and not self._should_stop)
        self._should_stop = trainer.should_stop
        if request or is_due or ends:
            self._save(trainer, pl_module)
        self._obey(trainer, request)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate no weights that are not numbers: they might be the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            end_at_once_on_signals()  # not in Lightning's way, which sends a message to the other processes from there
        else:
            _check_weights(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end a test at once: there is nothing to save."""
        end_at_once_on_signals()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the epoch, and stop where a signal has come."""
        if self._num_batches == self._epoch_size or self._saved_step < trainer.global_step:
            self._num_batches = 0
            self._save(trainer, pl_module)
        self._can_resume = False
        self._obey(trainer, self._agree(trainer, self._signum, now=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where a signal has come since, and let later ones end it at once."""
        self._obey(trainer, self._agree(trainer, self._signum, now=True))
        end_at_once_on_signals()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the training was, if it was between two steps and if it is one process, which need not agree."""
        is_ours = isinstance(exception, SystemExit | DivergedError | OSError)  # OSError: perhaps from saving
        if is_ours or self._is_in_step or not self._can_resume or trainer.world_size > 1 or not trainer.training:
            return
        if trainer.global_step > self._saved_step:
            # What the forward pass of a step that failed has changed.
            torch.set_rng_state(self._kept_random)
            torch._foreach_copy_(self._buffers, self._kept_buffers)
            try:
                self._save(trainer, pl_module)
            except (OSError, DivergedError) as error:
                print(f"not saved: {error}", file=sys.stderr)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_weights(trainer, pl_module)
        if self.path is None:
            return
        for logger in trainer.loggers:
            logger.save()  # what the curves have up to here is on the disk, too
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _request(self) -> int:
        """Tell what this process asks for: a signal's number, SAVE, or 0."""
        if self._signum:
            return self._signum
        minutes = self.every_n_minutes
        return SAVE if minutes and time.monotonic() - self._saved_at >= 60 * minutes else 0

    def _agree(self, trainer: Trainer, request: int, *, now: bool = False) -> int:
        """Give the request of all processes, which they must see at the same step."""
        if trainer.world_size == 1:
            return request
        if not now and self._num_batches % AGREE_STEPS:
            return 0
        return int(trainer.strategy.reduce(torch.tensor(request, device=trainer.strategy.root_device), reduce_op="max"))

    def _obey(self, trainer: Trainer, request: int) -> None:
        """Stop on a signal, once all is saved; on SLURM's, do what Lightning does."""
        if request <= SAVE:
            return
        if self._requeue is not None and request == signal.SIGUSR1:
            self._signum = 0
            self._requeue(request, None)
            return
        if trainer.is_global_zero:
            name, saved = signal.Signals(request).name, f"; --ckpt_path {self.path} goes on" if self.path else ""
            if self.path and not (self.path.parents[1] / "config.yaml").is_file():
                saved += ", with the same options beside it"
            print(f"\nstopped by {name} in epoch {trainer.current_epoch + 1}{saved}", flush=True)
        raise SystemExit(128 + request)

    def _stop_later(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT:
            if self._signum == signum:
                os._exit(128 + signum)  # what is being saved has not got its name yet
            with contextlib.suppress(OSError):  # os.write, for print may be what was interrupted
                os.write(2, b"\nsaving, then stopping; Ctrl-C again ends it at once\n")
        self._signum = signum

    def _check_losses(self, trainer: Trainer) -> None:
        losses = torch.stack(self._losses).float()
        self._losses = []
        if trainer.world_size > 1:  # a loss that is no number in one process is none in the sum
            losses = trainer.strategy.reduce(losses, reduce_op="sum")
        is_bad = ~torch.isfinite(losses)
        if is_bad.any():
            number = int(is_bad.int().argmax())
            step = self._num_batches - len(losses) + number + 1
            place = f"step {step} of epoch {trainer.current_epoch + 1}"
            raise DivergedError(_advice(f"the loss is {float(losses[number])} in {place}", trainer))


class DivergedError(RuntimeError):
    """Says that the loss or the weights are no longer finite numbers."""


def _check_weights(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse weights that are not finite numbers."""
    for name, weights in pl_module.named_parameters():
        if not math.isfinite(float(weights.detach().abs().amax())):
            place = f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step} of the training"
            raise DivergedError(_advice(f"{name} has values that are not finite {place}", trainer))


def _advice(what: str, trainer: Trainer) -> str:
    kept = [saved.best_model_path for saved in trainer.checkpoint_callbacks if isinstance(saved, ModelCheckpoint)]
    kept = [path for path in kept if path]
    what += ": start again with a lower --model.lr, or go on with --ckpt_path last --trainer.gradient_clip_val 1"
    return what + (f"; the best checkpoint so far is {kept[0]}" if kept else "")
