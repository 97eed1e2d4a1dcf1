"""Predictions -> metrics -> table, plots, report."""

from pathlib import Path
from typing import Any

import jinja2

from cifar_lit.files import printable


def templates(*, autoescape: bool) -> jinja2.Environment:
    """Return the environment of our templates: what they show is text, without characters that command anything."""
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    options: dict[str, Any] = {"loader": loader, "undefined": strict, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(autoescape=autoescape, finalize=_finalize, **options)  # noqa: S701 (for Markdown)


def _finalize(value: object) -> object:
    return printable(value) if type(value) is str else value  # and not markup of our own
