"""Where a network's class is found: in this package, in installed ones, or in the working folder."""

import hashlib
import importlib
import re
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeGuard

from torch import nn

from cifar_lit.errors import UserError, raised_in, suggest
from cifar_lit.files import shorten

OURS = "cifar_lit.networks"


class WorkingFolder:
    """Finds a module of the working folder that was named, and those that it imports, behind all that is installed.

    On ``sys.path`` the folder would serve every library that looks for an optional package, too.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.folder = Path()

    def name(self, module_name: str) -> None:
        """Let a module be found."""
        self.names.add(module_name.partition(".")[0])
        self.folder = Path.cwd()
        if self not in sys.meta_path:
            sys.meta_path.append(self)
        importlib.invalidate_caches()  # the file may be new

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where a module is, as Python's finders do; parts of a package are found in the package."""
        if path is not None or not {name, _importer()} & self.names:
            return None
        spec = PathFinder.find_spec(name, [str(self.folder)])
        if spec is not None:
            self.names.add(name)
        return spec


def _importer() -> str:
    """Return the top-level module whose code imports something at this moment."""
    frame = sys._getframe(2)
    while (name := str(frame.f_globals.get("__name__")).partition(".")[0]) in IMPORTING and frame.f_back:
        frame = frame.f_back
    return name


IMPORTING = ("importlib", "_frozen_importlib")
FOLDER = WorkingFolder()
NAMED: set[type] = set()
"""Classes of networks that the user named, or whose run the user trusts."""


def import_network(class_path: str) -> None:
    """Import a network that the user named, or of a run that the user trusts: this runs code.

    What does not exist, and what fails in the network's module, is a ``UserError`` that says where.
    """
    module_name, _, class_name = class_path.rpartition(".")
    _check_name(class_path)
    if not is_ours(class_path):
        FOLDER.name(module_name)
    try:
        module = importlib.import_module(module_name)
    except SystemExit as error:
        if raised_in(error)[-1][0] == "cifar_lit.signals":
            raise
        raise UserError(
            f"{place_of(error) or module_name}: it ends the process when it is imported ({describe(error)}): put that "
            "below if __name__ == '__main__'"
        ) from error
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")):
            place = place_of(error) or ("null bytes" in str(error) and f"{module_name} (save it as UTF-8)")
            if is_ours(class_path) or not place:
                raise
            raise UserError(f"{place}: {describe(error)}") from error
        near = suggest(module_name, {path.stem for path in Path().iterdir() if path.suffix == ".py" or path.is_dir()})
        raise UserError(
            f"{class_path} cannot be imported: there is no module {error.name} in this folder, and none is "
            f"installed{near}"
        ) from error
    found = vars(module).get(class_name)
    if not is_network(found):
        raise UserError(_no_network(module, class_name, found))
    NAMED.add(found)


def is_network(value: object) -> TypeGuard[type[nn.Module]]:
    """Return whether a value is a class of networks."""
    return isinstance(value, type) and issubclass(value, nn.Module)


def is_ours(class_path: str) -> bool:
    """Return whether a network of this name is one of this project's."""
    return class_path.startswith(f"{OURS}.")


def digest_of_code(class_path: str) -> str:
    """Return a digest of the file or package of a network in the working folder, without importing it; else nothing."""
    top, dot, _ = class_path.partition(".")
    if not dot or is_ours(class_path):
        return ""
    is_package = Path(top, "__init__.py").is_file() or not Path(f"{top}.py").is_file()
    files = sorted(Path(top).rglob("*.py")) if is_package else [Path(f"{top}.py")]
    contents = [hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:8] if files else ""


def find_network(class_path: str) -> object:
    """Return the object of this name if that imports nothing from elsewhere; else a ``UserError``.

    Networks of this project are found, those that the user named, and those of the user's own code if that is
    imported; not those of installed packages, which are imported without the user.
    """
    module_name, _, class_name = class_path.rpartition(".")
    _check_name(class_path)
    if is_ours(class_path):
        import_network(class_path)
    module = sys.modules.get(module_name)
    if module is None:
        raise UserError(
            f"the network {class_path:.200} is of another package: give `trust`, if you trust this file, "
            f"or import {module_name:.200} first"
        )
    found = vars(module).get(class_name)
    if found is None and module_name == "__main__":
        raise UserError(
            f"the network {class_name:.200} was defined in a script or notebook, and is found only there: put it into "
            "a module, and train that"
        )
    if is_network(found) and not is_ours(class_path) and not _is_of_user(found) and found not in NAMED:
        raise UserError(f"the network {class_path:.200} is of another package: give `trust`, if you trust this file")
    return found


def _is_of_user(kind: type) -> bool:
    """Return whether a class is of the user's own code, and not of this or of an installed package."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    is_installed = {"site-packages", "dist-packages"} & {*Path(file or "").parts}
    return not is_installed and kind.__module__.partition(".")[0] != OURS.partition(".")[0]


def _check_name(class_path: str) -> None:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", class_path):
        raise UserError(f"the network {class_path!r:.200} cannot be imported: must be module.Class, as my_net.MyNet")


def _no_network(module: ModuleType, name: str, found: object) -> str:
    """Return what a module has in place of a network of this name."""
    top = module.__name__.partition(".")[0]
    file = getattr(module, "__file__", None)
    where = f"{module.__name__}" + (f" ({_shown(file)})" if file else "")
    if found is not None:
        kind = "a class of another kind" if isinstance(found, type) else f"a {type(found).__name__}"
        return f"{name} of {where} is {kind}: must be a class, a subclass of torch.nn.Module"
    others = [key for key, value in vars(module).items() if is_network(value) and value.__module__.startswith(top)]
    text = f"the module {where} has no {name}"
    text += suggest(name, others) or (f"; it has {', '.join(others[:9])}" if others else "")
    own = [path for path in (Path(f"{top}.py"), Path(top)) if path.exists()]
    if own and file and not Path(file).is_relative_to(Path.cwd()):
        text += f"; it hides your {own[0]}: give that another name"
    return text


def is_of_user(frame: FrameType) -> bool:
    """Return whether code that runs is of a module that the user named, or of one beside it."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] in FOLDER.names


def place_of(error: BaseException) -> str:
    """Return file, line and function, in the code of a network that the user named, of an error; empty if of none."""
    frames = [
        (frame.f_code.co_filename, number, f", in {frame.f_code.co_name}")
        for frame, number in traceback.walk_tb(error.__traceback__)
        if is_of_user(frame)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 1, ""))
    if not frames:
        return ""
    file, number, function = frames[-1]
    return f"{_shown(file)}, line {number}{function.replace(', in <module>', '')}"


def _shown(file: str) -> str:
    return shorten(file) if Path(file).is_relative_to(Path.cwd()) else file


def describe(error: BaseException) -> str:
    """Return an error as Python writes it below a traceback, with its notes, in one line."""
    lines = [error.msg if isinstance(error, SyntaxError) else str(error), *getattr(error, "__notes__", ())]
    return f"{type(error).__name__}: {'; '.join(' '.join(str(line).split()) for line in lines if line)}"
