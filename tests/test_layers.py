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
    """Return the parts of the package that a file imports, also by the names that the package has for their classes."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")
    found = {name.split(".")[1] for name in names if name.startswith("cifar_lit.")}
    parts = {cifar_lit._HOMES.get(name, name) for name in found} - {"__version__"}
    assert all((PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() for part in parts), parts
    return parts


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("from cifar_lit import Run", "run"),
        ("from cifar_lit import networks", "networks"),
        ("from cifar_lit.data.augment import resize", "data"),
        ("import cifar_lit.module", "module"),
        ("import cifar_lit\nprint(cifar_lit.CIFAR10DataModule)", "datamodule"),
    ],
    ids=lambda text: text.replace("\n", "; "),
)
def test_an_import_is_found_whatever_it_is_written_like(code: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(code)
    assert imported_parts(tmp_path / "code.py") == {part}


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
