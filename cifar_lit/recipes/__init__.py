"""The packaged runs: complete settings, one YAML file each, whose first line says what it is."""

from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""The file of each packaged run, by its name."""


def recipe_help() -> str:
    """List the packaged runs.

    Returns:
        A line of help, with each recipe's name and the first line of its header.
    """
    titles = [f"{name} ({path.read_text().splitlines()[0].removeprefix('# ')})" for name, path in RECIPES.items()]
    return "A packaged run whose settings the other options change: " + "; ".join(titles)
