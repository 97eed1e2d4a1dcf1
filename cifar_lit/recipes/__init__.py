"""Packaged runs: complete settings, one YAML file each; the first line of its header is its title."""

from pathlib import Path

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""The file of each packaged run, by name."""


def recipe_help() -> str:
    """Return the help text of ``--recipe``, with the title of each packaged run."""
    headers = {name: path.read_text(encoding="utf-8").splitlines()[0] for name, path in RECIPES.items()}
    titles = [f"{name} ({header.removeprefix('# ')})" for name, header in headers.items()]
    return "A packaged run, whose settings other options override: " + "; ".join(titles)
