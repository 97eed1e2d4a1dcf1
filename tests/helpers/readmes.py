"""The READMEs of the project: their fenced blocks, their text without them, and the commands in a block."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FOLDERS = (".github", "cifar_lit", "tests")
READMES = sorted({*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))})
FENCE = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
NOTE = rf"""
set -eu
note() {{
    printf '%s\0' "$({shutil.which("readlink")} /proc/$$/fd/0)" "$({shutil.which("readlink")} /proc/$$/fd/1)" \
        "${{PYTHONPATH-}}" "$@" >> noted
    printf '\n\0' >> noted
}}
for command in cifar-lit pip python python3 pytest; do eval "$command() {{ note $command \"\$@\"; }}"; done
exec 3>&1 >/dev/null
"""
"""Functions in place of the commands; with an empty ``PATH`` every other program is an error."""


class Block(NamedTuple):
    name: str
    reason: str
    language: str
    text: str


class Command(NamedTuple):
    stdin: str
    stdout: str
    pythonpath: str
    words: list[str]


def blocks(*languages: str) -> Iterator[Block]:
    """Return the fenced blocks of these languages in all READMEs."""
    for path in READMES:
        content = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            if match["language"] in languages:
                line = content.count("\n", 0, match.start("text"))
                name = f"{path.relative_to(ROOT)}:{line + 1}"
                yield Block(name, match["reason"] or "", match["language"], match["text"])


def prose(path: Path) -> str:
    """Return the text of a README without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def expand(text: str) -> Iterator[Command]:
    """Let bash expand the commands of a block, in the current folder."""
    environment = {"PATH": "", "HOME": os.environ["HOME"]}
    bash = shutil.which("bash") or "bash"
    subprocess.run([bash, "-c", NOTE + text], check=True, stdin=subprocess.DEVNULL, timeout=60, env=environment)
    for call in Path("noted").read_text(encoding="utf-8").split("\0\n\0")[:-1]:
        stdin, stdout, pythonpath, *words = call.split("\0")
        yield Command(stdin, stdout, pythonpath, words)
