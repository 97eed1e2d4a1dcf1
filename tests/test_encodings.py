"""Text files are UTF-8 on every machine: nothing in the package reads or writes text in the locale's encoding."""

import ast
from pathlib import Path

import pytest

import cifar_lit

FILES = sorted(Path(cifar_lit.__file__).parent.rglob("*.py"))
BINARY = {"os", "Image", "tarfile", "zipfile", "sweep", "self", "opener"}
"""What has an ``open`` that returns no text file."""


def uses_the_locale(call: ast.Call) -> bool:
    """Return whether a call opens a text file, or runs a process with text, without ``encoding``."""
    function, keywords = call.func, {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(getattr(function, "value", None), "id", "")
    parts = [part for arg in [*call.args, *keywords.values()] for part in ast.walk(arg)]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    is_binary = any(isinstance(text, str) and "b" in text and set(text) <= set("rwaxbt+") for text in texts)
    if name in ("read_text", "write_text", "TextIOWrapper"):
        return True
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        return not is_binary and owner not in BINARY
    return bool({"text", "universal_newlines"} & keywords.keys())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.write_text(x, encoding='utf-8')", False),
        ("open(path)", True),
        ("path.open('rb')", False),
        ("path.open('ab' if x else 'wb')", False),
        ("open(path, mode='xb')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("Image.open(file)", False),
        ("subprocess.run(args, text=True)", True),
        ("subprocess.run(args)", False),
    ],
)
def test_what_uses_the_locale_is_found(code: str, expected: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert uses_the_locale(call) == expected


def test_text_is_utf_8() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and uses_the_locale(node)
    ]
    assert found == []
