"""Predictions -> metrics -> table, plots, report."""

from pathlib import Path

import jinja2


def templates(*, autoescape: bool) -> jinja2.Environment:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    options = {"loader": loader, "undefined": strict, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(autoescape=autoescape, **options)  # type: ignore[arg-type]  # noqa: S701 (for Markdown)
