"""What ``auto`` stands for in a run: settled once, before anything of the run is written."""

import functools
import os
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.callbacks.exact_resume import get_random_state, set_random_state
from cifar_lit.cli.arguments import FitCLI
from cifar_lit.machine import computes_on_cpu, keep_freed_memory
from cifar_lit.networks.kernels import Choice, choose_precision
from cifar_lit.networks.winograd import Conv3x3
from cifar_lit.run import Run

TOLD = "CIFAR_LIT_PRECISION"
"""Environment variable with the precision of the first process, for those that it starts."""


def settle(cli: FitCLI, resumed: Run | None) -> None:
    """Settle the precision and the kernels: those of the run that is resumed, or the faster ones.

    Processes after the first one leave the kernels to it, until all have started.
    """
    kernels, precision = cli.model.hparams["kernels"], cli.trainer_options["precision"]
    if "auto" not in (kernels, precision):
        return
    is_measured = True
    if resumed:
        kernels = resumed.model_options.get("kernels", "winograd") if kernels == "auto" else kernels
        precision = resumed.precision if precision == "auto" else precision
    else:
        random_state = get_random_state()
        kernels, precision, is_measured = _choose(cli, kernels, precision)
        set_random_state(random_state)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        os.environ[TOLD] = str(precision or "")  # to the processes that this one starts
    cli.settle(kernels=kernels, precision=precision)
    has_choice = any(isinstance(layer, Conv3x3) for layer in cli.model.net.modules())
    of_kernels = f", kernels {_in_words(kernels)}" if has_choice else ""
    note = "" if is_measured else " (not measured: other work keeps the processor busy)"
    rank_zero_only(print)(f"precision {precision or '32-true'}{of_kernels}{note}")


def _choose(cli: FitCLI, given: Any, precision: Any) -> tuple[Any, Any, bool]:
    """Return the kernels, the precision, and whether they are as measured, where they had to be."""
    model, data = cli.model, cli.datamodule.hparams
    sizes, batch_size = data["image_sizes"] or [model.image_size], data["batch_size"]
    on_cpu = computes_on_cpu(cli.trainer_options["accelerator"])
    keep_freed_memory()
    is_first, is_measured = rank_zero_only.rank == 0, True  # type: ignore[attr-defined]
    option: Any = "direct" if model.hparams["compile"] else given  # compiled, convolutions are torch's

    @functools.cache
    def kernels_in(precision: Any) -> Choice:
        return model.choose_kernels(sizes, batch_size, precision, on_cpu=on_cpu) if option == "auto" else (option, True)

    if precision == "auto" and not is_first and TOLD in os.environ:
        precision = os.environ[TOLD]
    elif precision == "auto" and on_cpu:
        (in_bfloat16, is_one), (in_float32, is_other) = kernels_in("bf16-mixed"), kernels_in("32-true")
        both = in_bfloat16, in_float32
        chosen = choose_precision(model.net, max(sizes), batch_size, both, option) if is_one and is_other else None
        precision, is_measured = chosen or "32-true", chosen is not None
    elif precision == "auto":
        has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if has_bfloat16 else "32-true"
    kernels, are_measured = kernels_in(precision) if is_first and given == "auto" else (given, True)
    return kernels, precision, is_measured and are_measured


def _in_words(kernels: Any) -> str:
    """Return the kernels in a few words: the usual one, and the shapes that have the other."""
    if not isinstance(kernels, dict):
        return str(kernels)
    by = {kernel: [shape for shape, of in kernels.items() if of == kernel] for kernel in ("winograd", "direct")}
    few, many = sorted(by, key=lambda kernel: len(by[kernel]))  # of as many, direct is the usual one
    return f"{many}" + (f" ({few} for {', '.join(by[few])})" if by[few] else "")
