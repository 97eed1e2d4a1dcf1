"""What a forward pass changes: buffers, as the statistics of BatchNorm are."""

import operator

import torch
from torch import Tensor, nn


class Buffers:
    """Keeps a copy of the buffers of a module, as the last finished step left them.

    A network may replace a buffer (``self.mean = ...``): the dictionaries that it lies in stay.
    """

    def __init__(self, module: nn.Module) -> None:
        self._holders = [part._buffers for part in module.modules() if part._buffers]
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._now: list[Tensor] = []
        self._kept: list[Tensor] = []
        self.keep()

    def keep(self) -> None:
        """Copy the buffers."""
        now = [buffer for holder in self._holders for buffer in holder.values() if buffer is not None]
        if len(now) == len(self._now) and all(map(operator.is_, now, self._now)):
            torch._foreach_copy_(self._kept, now)
            return
        self._now, self._kept = now, [buffer.clone() for buffer in now]
        self._places = [(holder, name) for holder in self._holders for name in holder if holder[name] is not None]

    def restore(self) -> None:
        """Put the copies in the place of the buffers."""
        for (holder, name), kept in zip(self._places, self._kept, strict=True):
            holder[name] = kept
