"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(step: int, *, num_steps: int, num_warmup_steps: int, schedule: Schedule) -> float:
    """Give the factor on the peak learning rate for one optimizer step.

    The warm-up rises in equal parts and reaches the peak with its last step; after it the schedule falls from
    the peak towards zero, which it would reach one step after the last one (so no step is wasted at zero).
    The cosine is the one of SGDR without restarts (arXiv 1608.03983, equation 5).

    Args:
        step: The step that is about to be made, from 0.
        num_steps: Steps of the whole run, at least 1.
        num_warmup_steps: Steps of the warm-up, below ``num_steps``; 0 for none.
        schedule: ``constant`` (stays at the peak), ``linear`` or ``cosine``.

    Returns:
        A factor in [0, 1].
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
