"""The best checkpoint."""

import math
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.errors import UserError
from cifar_lit.run import BEST

Monitor = Literal["Accuracy/val", "MacroAccuracy/val", "Loss/val"]
MONITORED: tuple[str, ...] = get_args(Monitor)
"""The metrics of validation; the first is the default."""
REMEMBERED = ("metrics", "best_epoch", "num_val")


class Best(ModelCheckpoint):
    """Keeps ``best.ckpt``: the epoch with the best ``monitor`` on validation, of several the one with the lowest loss.

    It is saved at the end of the epoch, as ``last.ckpt`` is, so that a run can resume from either. Only the first
    process knows the folder, which is broadcast. ``best_epoch`` is counted from 1; 0 before there is one. ``metrics``
    are those of validation in that epoch; empty before.
    """

    def __init__(self, folder: Path | None, monitor: Monitor = "Accuracy/val") -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode="min" if monitor == "Loss/val" else "max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.metrics: dict[str, float] = {}
        self.best_epoch = 0
        self.num_val = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            self.num_val = int(pl_module.num_val)  # type: ignore[arg-type]
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether an epoch is the best by ``monitor``, or has the same as the best and a lower loss.

        Few images give few different accuracies, and the first of several equal epochs may hardly have learned.
        """
        now: dict[str, float] = {
            name: float(trainer.callback_metrics[name]) for name in MONITORED if name in trainer.callback_metrics
        }
        is_better: bool = super().check_monitor_top_k(trainer, current)
        if current is not None and self.best_model_score is not None and bool(current == self.best_model_score):
            is_better = now.get("Loss/val", math.inf) < self.metrics.get("Loss/val", math.inf)
        if is_better:
            self.metrics, self.best_epoch = now, trainer.current_epoch + 1
        return is_better

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Remove nothing: the file has one name, and each save replaces it."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in REMEMBERED}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``best.ckpt`` in the run's folder says of itself; start anew where there is none.

        A run may resume from an epoch before its best one, and best.ckpt may be gone.
        """
        path = Path(str(self.dirpath), BEST)
        try:
            saved = load_checkpoint(path)["callbacks"][self.state_key]
            score = torch.tensor(float(saved["best_model_score"]))
            # An older version could choose by accuracy alone, and kept no more.
            found = saved["metrics"] if "metrics" in saved else {"Accuracy/val": score, "Loss/val": saved["best_loss"]}
            metrics = {name: float(found[name]) for name in MONITORED if name in found}
            epoch, num_val = int(saved["best_epoch"]), int(saved["num_val"])
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            if path.exists():
                rank_zero_only(print)(f"{path} is damaged: the best from here on replaces it")
            return
        # Lightning remembers paths as text; the folder may have moved, or be spelled otherwise.
        best = {"best_model_score": score, "kth_value": score, "best_k_models": {str(path): score}}
        paths = {"dirpath": str(path.parent), "best_model_path": str(path), "kth_best_model_path": str(path)}
        super().load_state_dict({**state_dict, **best, **paths})
        self.metrics, self.best_epoch, self.num_val = metrics, epoch, num_val


def saved_paths(callback: Callback) -> list[Path]:
    """Return the files that a callback of Lightning saves under a name that is known before the training."""
    if isinstance(callback, OnExceptionCheckpoint):
        return [Path(callback.ckpt_path).resolve()]
    if not isinstance(callback, ModelCheckpoint):
        return []
    names = [callback.filename, callback.CHECKPOINT_NAME_LAST if callback.save_last else None]
    return [Path(callback.format_checkpoint_name({}, name)).resolve() for name in names if name and "{" not in name]
