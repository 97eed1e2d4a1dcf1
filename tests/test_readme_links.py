"""What the READMEs point to exists: files, headings, names in files, documentation pages, commands, options."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

from cifar_lit.main import COMMANDS
from tests.helpers.options import Workbench
from tests.helpers.readmes import READMES, ROOT, prose

LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
NAMED = re.compile(r"\]\((?P<file>[^):]+\.py)\)(?P<text>[^|\[\n]*)")
PAGES = re.compile(r"https://(?:docs\.pytorch\.org|lightning\.ai)/[\w/]+/(?:generated|api)/([\w.]+)\.html")
IDEAS = (
    "torch.nn.Module",
    "torch.nn.Conv2d",
    "torch.nn.MaxPool2d",
    "torch.nn.ReLU",
    "torch.nn.Flatten",
    "torch.nn.Linear",
    "torch.nn.Sequential",
    "torch.nn.CrossEntropyLoss",
    "torch.optim.SGD",
    "torch.optim.Optimizer.zero_grad",
    "torch.Tensor.backward",
    "torch.optim.Optimizer.step",
    "torch.no_grad",
    "torch.save",
    "torchvision.datasets.CIFAR10",
    "torchvision.transforms.ToTensor",
)
"""What the tutorial uses and has a page of its own."""
SUBOPTIONS = ("--model.net.", "--trainer.callbacks")

each_readme = pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_readme
def test_linked_files_and_headings_exist(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_readme
def test_names_beside_a_linked_file_are_in_it(path: Path) -> None:
    for file, text in NAMED.findall(prose(path)):
        module = ast.parse((path.parent / file).read_text(encoding="utf-8"))
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", text):
            assert defines(module, name), f"{name} in {file}"


def defines(scope: ast.AST, name: str) -> bool:
    """Return whether a module or class defines a class or function, or a method of a class as ``Class.method``."""
    first, _, rest = name.partition(".")
    kinds = ast.ClassDef | ast.FunctionDef
    found = [node for node in ast.iter_child_nodes(scope) if isinstance(node, kinds) and node.name == first]
    return any(not rest or defines(node, rest) for node in found)


@each_readme
def test_linked_pages_of_classes_are_of_classes_that_exist(path: Path) -> None:
    for name in PAGES.findall(path.read_text(encoding="utf-8")):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", ["README.md", ".github/README.zh-CN.md"])
def test_the_tutorials_ideas_have_their_pages(name: str) -> None:
    linked = PAGES.findall((ROOT / name).read_text(encoding="utf-8"))
    assert not set(IDEAS) - set(linked)


def test_commands_and_options_in_the_text_exist() -> None:
    known = {*Workbench().cli.parser._option_string_actions, "--index-url"}  # pip's
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cifar_lit").rglob("*.py"))
    for path in READMES:
        if path.name == "CHANGELOG.md":  # has those that were removed
            continue
        for code in re.findall(r"`([^`\n]+)`", prose(path)):
            for command in re.findall(r"^cifar-lit ([a-z]+)", code):
                assert command in COMMANDS, code
            for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", code if code.startswith(("--", "cifar-lit")) else ""):
                in_class = option.startswith(SUBOPTIONS)
                assert option in known or in_class or f'"{option}"' in source, f"{option} in {path.name}"


def test_the_readme_is_short_and_names_its_translation_first() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 250
    assert lines[2] == "[中文](.github/README.zh-CN.md)"
