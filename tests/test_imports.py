"""Who may import whom: data flows one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cifar_lit

PACKAGE = Path(cifar_lit.__file__).parent
ALLOWED: dict[str, set[str]] = {
    "sources": {"sources"},
    "networks": {"networks"},
    "optim": set(),
    "callbacks": set(),
    "checkpoint": set(),
    "augment": set(),
    "loader": {"augment"},
    "datamodule": {"augment", "sources", "loader"},
    "metrics": set(),
    "views": set(),
    "predict": {"module", "parser", "sources"},
    "card": {"module"},
    "compare": {
        *("checkpoint", "datamodule", "module", "parser", "report", "results", "runs", "sources"),
    },
    "demo": {"checkpoint", "datamodule", "module", "parser", "report", "results", "sources"},
    "export": {
        *("card", "checkpoint", "datamodule", "module", "parser", "pretrained", "results", "runs", "sources"),
    },
    "module": {"checkpoint", "metrics", "networks", "optim", "pretrained", "sources", "views"},
    "pretrained": {"parser"},
    "lr_finder": {"checkpoint", "datamodule", "module", "parser"},
    "machine": set(),
    "parser": set(),
    "recipes": set(),
    "report": {"callbacks"},
    "results": {"datamodule", "module", "report"},
    "runs": set(),
    "saver": {"signals"},
    "signals": set(),
    "sweep": {"command", "machine", "parser", "recipes", "results", "runs", "saver", "trial"},
    "trial": set(),
    "command": {
        *(
            "recipes",
            "callbacks",
            "checkpoint",
            "datamodule",
            "lr_finder",
            "machine",
            "module",
            "parser",
            "results",
            "runs",
            "saver",
        ),
    },
    "cli": {"checkpoint", "command", "machine", "parser", "predict", "recipes", "runs", "signals"},
    "bench": {"bench", "augment", "cli", "datamodule", "loader", "machine", "networks"},
    "__init__": set(),
}


def imported(path: Path) -> set[str]:
    """Name the modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_lit."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "cifar_lit":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cifar_lit.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported(path) <= ALLOWED[part]


def test_the_package_itself_imports_no_torch() -> None:
    code = "import sys, cifar_lit; assert 'torch' not in sys.modules; print(cifar_lit.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cifar_lit.__version__
