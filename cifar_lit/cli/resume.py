"""Whether a run can resume with the given options."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from cifar_lit.cli.arguments import FitCLI
from cifar_lit.cli.restore import check_has_state
from cifar_lit.errors import UserError
from cifar_lit.run import RESULTS, Run
from cifar_lit.trust import only_read

MAY_DIFFER = ("root", "cache_dir", "mirror")


def epochs_done(checkpoint: dict[str, Any]) -> int:
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def find_resumed(cli: FitCLI) -> Run | None:
    """Return the run that the options resume; None for a new one.

    Other settings of model or data are refused: the checkpoint's optimizer and split do not fit them.
    """
    path = cli.config["ckpt_path"]
    if path is None:
        return None
    run = Run(path, trust=cli.config["trust_run"])
    check_has_state(run)
    if run.folder and not run.trust and "--data.root" not in cli.given:
        only_read(cli.datamodule)
    then, now = {**run.model_options, **run.data_options}, {**cli.model.hparams, **cli.datamodule.hparams}
    changed = [name for name in then if name not in MAY_DIFFER and then[name] != now.get(name)]
    if changed:
        differences = ", ".join(f"{name} {then[name]} (given: {now.get(name)})" for name in changed)
        way_out = "give the same" + (", or leave them out" if run.folder else "; the run's config.yaml is missing")
        raise UserError(f"--ckpt_path {path} resumes with its own settings of model and data: {differences}; {way_out}")
    run.check_finite(cli.model)
    num_done, max_epochs = epochs_done(run.checkpoint), cli.trainer_options["max_epochs"]
    num_left = 1 if max_epochs in (None, -1) else int(max_epochs) - num_done
    is_tested = run.folder is None or (run.folder / RESULTS).exists()
    if num_left < 0 or (num_left == 0 and is_tested):
        raise UserError(f"`max_epochs` is {max_epochs}, and {path} has finished {num_done} epochs: give more")
    rank_zero_only(print)(f"resuming {path}: {num_done} epochs and {run.checkpoint['global_step']:,} steps are done")
    return run
