"""Networks in the working folder: found if they are named, and nothing else of the folder is."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifar_lit.errors import UserError
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.finding import FOLDER, NAMED, find_network, import_network

NET = """\
from torch import nn
class Near(nn.Module):
    def forward(self, x):
        return x.flatten(1)
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before, named = set(sys.modules), set(NAMED)
    FOLDER.names.clear()  # of other tests: this module's package may be one
    yield
    FOLDER.names.clear()
    NAMED.intersection_update(named)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_that_is_named_and_what_it_imports_are_found() -> None:
    Path("pkg_a/sub").mkdir(parents=True)  # packages without __init__.py
    Path("pkg_a/sub/nets.py").write_text("from blocks_a import Near\nclass Deep(Near):\n    pass")
    Path("blocks_a.py").write_text(NET)
    Path("wandb_a.py").write_text("raise SystemError")
    with pytest.raises(UserError, match="is of another package"):
        find_network("pkg_a.sub.nets.Deep")
    import_network("pkg_a.sub.nets.Deep")
    assert getattr(find_network("pkg_a.sub.nets.Deep"), "__name__", None) == "Deep"
    with pytest.raises(ModuleNotFoundError):  # a library that looks for an optional package
        importlib.import_module("wandb_a")
    assert str(Path.cwd()) not in sys.path


def test_what_is_installed_is_not_hidden_and_says_that_it_hides() -> None:
    Path("colorsys.py").write_text(NET)
    with pytest.raises(UserError, match=r"the module colorsys \(.*\) has no Near; it hides your colorsys.py"):
        import_network("colorsys.Near")


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (NET, "Naer", r"^the module net_b \(net_b.py\) has no Naer; did you mean Near\?$"),
        (NET, "nn", r"^nn of net_b \(net_b.py\) is a module: must be a class"),
        ("class Near: pass", "Near", "is a class of another kind"),
        ("x = 1\ndef f(:", "Near", r"^net_b.py, line 2: SyntaxError: invalid syntax$"),
        ("def f():\n    import nothing_b\nf()", "Near", r"^net_b.py, line 2, in f: ModuleNotFoundError: No module"),
        ("int('x')", "Near", r"^net_b.py, line 1: ValueError: invalid literal"),
    ],
)
def test_what_is_wrong_with_a_module_is_said(content: str, name: str, expected: str) -> None:
    Path("net_b.py").write_text(content)
    with pytest.raises(UserError, match=expected):
        import_network(f"net_b.{name}")


def test_a_module_of_a_similar_name_is_suggested() -> None:
    Path("my_net.py").write_text("raise SystemError")
    with pytest.raises(UserError, match=r"there is no module my_nte in this folder.*; did you mean my_net\?$"):
        import_network("my_nte.Near")


def test_an_imported_class_of_an_installed_package_needs_to_be_named() -> None:
    for name in ("torch.nn.Flatten", f"{ImageClassifier.__module__}.ImageClassifier"):  # a model is no network
        with pytest.raises(UserError, match=r"is of another package: give `trust`, if you trust this file$"):
            find_network(name)
    import_network("torch.nn.Flatten")
    assert getattr(find_network("torch.nn.Flatten"), "__name__", None) == "Flatten"
