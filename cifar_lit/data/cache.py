"""The cache of decoded images: private, with checksums."""

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_lit.data.archives import writing
from cifar_lit.data.listing import say
from cifar_lit.errors import UserError, explain_failure
from cifar_lit.files import write_atomic


class Cache:
    """The entries of one dataset, which are valid as long as it has the same fingerprint.

    Each entry has a checksum (CRC-32, 0.05 s for 60,000 images), against damage. Other users are kept out by the
    folder, which must belong to this one (or to root), and which only its owner may write to.
    """

    def __init__(self, parent: Path, root: Path, fingerprint: str) -> None:
        self.parent = parent
        self.folder = parent / hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
        self.fingerprint = fingerprint
        self._check_private()

    def read(self, name: str) -> dict[str, Any] | None:
        """Return an entry; None if it is missing, outdated or damaged, and only what is damaged is worth a line."""
        path = self.folder / f"{name}.pt"
        try:
            entry = torch.load(path, weights_only=True, mmap=True)
            if entry["fingerprint"] != self.fingerprint:
                return None
            is_sound = entry.pop("checksum") == _checksum(entry)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load has no closed list of what it raises for a file that is none of its own
            if explain_failure(error):  # the file may be sound, and not to be read, or memory full
                raise
            is_sound = False
        if is_sound:
            return dict(entry)
        say(f"{path} is damaged: the images are decoded again")
        return None

    def make(self, name: str, function: Callable[[], dict[str, dict[str, Any]]]) -> dict[str, Any]:
        """Return an entry that one process makes by a function, perhaps with others, while other processes wait.

        Entries have tensors, and values that JSON has. They are read from the file, memory-mapped.
        """
        with writing(self.folder, f"`cache_dir` {self.parent}", mode=0o700):
            self._check_private()
            if found := self.read(name):
                return found
            made = function()
            for each, values in made.items():
                self._write(each, values)
        return self.read(name) or made[name]

    def _write(self, name: str, values: dict[str, Any]) -> None:
        for left_over in self.folder.glob(f".{name}.pt.*"):  # of a process that was killed: this one has the lock
            left_over.unlink(missing_ok=True)
        entry = {"fingerprint": self.fingerprint, **values}
        entry["checksum"] = _checksum(entry)
        write_atomic(self.folder / f"{name}.pt", partial(torch.save, entry))

    def _check_private(self) -> None:
        try:
            status = self.folder.lstat()
        except OSError:
            return  # nothing is there, or writing will say what it is
        problem = ""
        if not stat.S_ISDIR(status.st_mode):
            problem = "is no folder"
        elif hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
            problem = "belongs to another user"
        elif hasattr(os, "geteuid") and status.st_mode & 0o022:
            problem = "can be written by other users"
        if problem:
            raise UserError(f"`cache_dir` {self.parent}: {self.folder.name} in it {problem}: remove it or give another")


def _checksum(entry: dict[str, Any]) -> int:
    checksum = 0
    for name, value in sorted(entry.items()):
        if isinstance(value, Tensor):
            checksum = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), checksum)
            checksum = zlib.crc32(value.contiguous().numpy(), checksum)  # type: ignore[arg-type]
        else:
            checksum = zlib.crc32(f"{name} {json.dumps(value)}".encode(), checksum)
    return checksum
