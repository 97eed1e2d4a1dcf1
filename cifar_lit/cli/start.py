"""What a training starts from: the settings of the run that is resumed, or else a recipe."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cifar_lit.cli.config import expand_home
from cifar_lit.cli.network import import_named
from cifar_lit.cli.trust import check_config_of_run, given_options
from cifar_lit.errors import UserError
from cifar_lit.recipes import RECIPES
from cifar_lit.run import CHECKPOINTS, CONFIG, LAST, LOGS, Run, run_folder
from cifar_lit.schema import read_yaml

WHOLE = {"seed_everything", "trainer", "model", "data", "ckpt_path", "report"}
"""What the configuration of a run has, in any version; it has all settings."""


def with_config(args: Sequence[str]) -> list[str]:
    """Put one ``--config`` before all other options: that of the run that is resumed, or else the recipe.

    After that of a run come the folders of its images, as its checkpoint has them, if they are there: its file may have
    them relative to the working folder of that day.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--recipe", "--ckpt_path", "--trainer.default_root_dir"):
        parser.add_argument(option, nargs="?", dest=option)
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    given = vars(parser.parse_known_args(args)[0])
    import_named(args, [config for config in given["config"] if config])
    if given["--ckpt_path"]:
        of_files = (_default_root_dir(file) for file in reversed(given["config"]))
        root = given["--trainer.default_root_dir"] or next(filter(None, of_files), ".")
        file = _checkpoint_to_resume(given["--ckpt_path"], root=root)
        args = [*args, "--ckpt_path", str(file)]
        if folder := run_folder(file):
            if given["--recipe"]:
                raise UserError("--recipe belongs to a new run: leave it out beside --ckpt_path")
            names, trust = given_options(args), "--trust_run" in args
            if not trust:
                check_config_of_run(folder / CONFIG, names)
            import_named((), [folder / CONFIG])
            places = Run(file, trust=trust).data_places(given={name.removeprefix("--data.") for name in names})
            if not os.path.exists(places.get("root", "")):  # noqa: PTH110 (a project that was moved with its images)
                places.pop("root", None)
            return ["--config", str(folder / CONFIG), f"--data={json.dumps(places, ensure_ascii=False)}", *args]
    recipe = given["--recipe"] or next(filter(None, map(recipe_of, reversed(given["config"]))), "tutorial")
    return ["--config", str(RECIPES[recipe]), *args] if recipe in RECIPES else list(args)


def _checkpoint_to_resume(given: str, root: str) -> Path:
    """Return the checkpoint that ``--ckpt_path`` means: ``last``, a run's folder, or a file."""
    if given == "last":
        found = [path for path in (Path(root) / LOGS).glob(f"*/{CHECKPOINTS}/{LAST}") if path.is_file()]
        if not found:
            raise UserError(f"--ckpt_path last: no run in {Path(root) / LOGS} has a {CHECKPOINTS}/{LAST}")
        return max(found, key=lambda path: path.stat().st_mtime)
    return Path(given, CHECKPOINTS, LAST) if Path(given).is_dir() else Path(given)


def _default_root_dir(config: str | None) -> str | None:
    """Return the folder that a file of settings names for runs; None if it names none, or cannot be read."""
    try:
        return expand_home(str(read_yaml(Path(str(config)))["trainer"]["default_root_dir"] or ""))
    except (UserError, KeyError, TypeError):
        return None


def recipe_of(config: str | None) -> str | None:
    """Return the recipe that a file builds on; None if it has all settings itself, or cannot be read."""
    try:
        content = read_yaml(Path(str(config)))  # the recipe may have options by now that its version did not know
        return None if content.keys() >= WHOLE else str(content["recipe"])
    except (UserError, KeyError):
        return None  # what is wrong with the file is said when it is parsed
