"""The shape of the package: who may import whom, and how long files and functions may be."""

import ast
from pathlib import Path

import pytest

import cifar_lit

PACKAGE = Path(cifar_lit.__file__).parent
LAYERS = (
    {"benchmarks"},
    {"main"},
    {"commands"},
    {"cli"},
    {"callbacks", "evaluation"},
    {"run_writer"},
    {"run"},
    {"trust"},
    {"module", "datamodule", "results"},
    {"finetuning"},
    {"checkpoint", "loggers", "prediction"},
    {"data", "networks", "optim", "metrics", "recipes", "schema"},
    {"machine", "errors", "files", "signals"},
)
"""From top to bottom: a part imports only from layers below its own, and from itself."""
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = {name.split(".")[1] for name in names if name.startswith("cifar_lit.")}
    return {part for part in parts if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_part_imports_only_from_the_layers_below(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return  # the faces of the package
    (level,) = (number for number, layer in enumerate(LAYERS) if part in layer)
    below = set().union(*LAYERS[level + 1 :])
    assert imported_parts(path) - {part} <= below


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno + 1 < 40, node.name
