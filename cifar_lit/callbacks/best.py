"""The best checkpoint."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cifar_lit.checkpoint import load_checkpoint
from cifar_lit.errors import UserError
from cifar_lit.run import BEST

REMEMBERED = ("best_loss", "best_epoch", "num_val")


class Best(ModelCheckpoint):
    """Keeps ``best.ckpt``: the epoch with the best validation accuracy, of several the one with the lowest loss.

    It is saved at the end of the epoch, as ``last.ckpt`` is, so that a run can resume from either. Only the first
    process knows the folder, which is broadcast. ``best_epoch`` is counted from 1; 0 before there is one.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(BEST).stem,
            monitor="Accuracy/val",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.best_loss = math.inf
        self.best_epoch = 0
        self.num_val = 0

    @property
    def metrics(self) -> dict[str, float]:
        """The validation metrics of the best epoch; empty before there is one."""
        score = self.best_model_score
        return {} if score is None else {"Accuracy/val": float(score), "Loss/val": self.best_loss}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            self.num_val = int(pl_module.num_val)  # type: ignore[arg-type]
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether an epoch has the highest accuracy, or the same as the best and a lower loss.

        Few images give few different accuracies, and the first of several equal epochs may hardly have learned.
        """
        loss = float(trainer.callback_metrics.get("Loss/val", math.inf))
        is_better: bool = super().check_monitor_top_k(trainer, current)
        if current is not None and self.best_model_score is not None and bool(current == self.best_model_score):
            is_better = loss < self.best_loss
        if is_better:
            self.best_loss, self.best_epoch = loss, trainer.current_epoch + 1
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
            score, loss = torch.tensor(float(saved["best_model_score"])), float(saved["best_loss"])
            epoch, num_val = int(saved["best_epoch"]), int(saved["num_val"])
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            if path.exists():
                rank_zero_only(print)(f"{path} is damaged: the best from here on replaces it")
            return
        # Lightning remembers paths as text; the folder may have moved, or be spelled otherwise.
        best = {"best_model_score": score, "kth_value": score, "best_k_models": {str(path): score}}
        paths = {"dirpath": str(path.parent), "best_model_path": str(path), "kth_best_model_path": str(path)}
        super().load_state_dict({**state_dict, **best, **paths})
        self.best_loss, self.best_epoch, self.num_val = loss, epoch, num_val


def saved_paths(callback: Callback) -> list[Path]:
    """Return the files that a callback of Lightning saves under a name that is known before the training."""
    if isinstance(callback, OnExceptionCheckpoint):
        return [Path(callback.ckpt_path).resolve()]
    if not isinstance(callback, ModelCheckpoint):
        return []
    names = [callback.filename, callback.CHECKPOINT_NAME_LAST if callback.save_last else None]
    return [Path(callback.format_checkpoint_name({}, name)).resolve() for name in names if name and "{" not in name]
