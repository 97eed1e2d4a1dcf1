"""Packaged runs: complete settings, one YAML file each; the first line of its header is its title."""

from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""The file of each packaged run, by name."""
LADDER = sorted((Path(__file__).parent / "ladder").glob("*.yaml"))
"""The files of the ladder: the settings of a step are those of all files up to its own."""


def title_of(path: Path) -> str:
    """Return the first line of a file's header."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def recipe_help() -> str:
    """Return the help text of ``--recipe``, with the title of each packaged run."""
    titles = [f"{name} ({title_of(path)})" for name, path in RECIPES.items()]
    return "A packaged run, whose settings other options override: " + "; ".join(titles)
