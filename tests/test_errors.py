"""Errors for users, optional packages, and how failures of the machine look."""

import errno
import re
from pathlib import Path

import pytest
import torch

from cifar_lit.errors import UserError, explain_failure, import_extra, raised_in, require, suggest
from tests.helpers.processes import at_step
from tests.helpers.runs import FEW_EPOCHS, Refused


def test_the_names_of_options_replace_those_of_arguments() -> None:
    error = UserError("`batch_size` is 0, unlike `other` and batch_size")
    assert str(error) == "`batch_size` is 0, unlike `other` and batch_size"
    assert error.exit_code == 2
    error.options = {"batch_size": "--data.batch_size"}
    assert str(error) == "--data.batch_size is 0, unlike `other` and batch_size"
    assert UserError("later", exit_code=1).exit_code == 1


def test_require() -> None:
    require("lr", 0.1, True, "above 0")
    with pytest.raises(UserError, match=re.escape("`std` is [1, 0, 1]: must be three numbers above 0")):
        require("std", (1, 0, 1), False, "three numbers above 0")


def test_an_optional_package_is_imported_or_named_with_its_extra() -> None:
    assert import_extra("json", extra="export").loads("1") == 1
    with pytest.raises(
        UserError, match=r"needs no_such_package, which is not installed: pip install 'cifar-lit\[demo\]'"
    ):
        import_extra("no_such_package", extra="demo")


def test_a_broken_optional_package_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_extra("broken_package", extra="demo")


def test_suggestions() -> None:
    assert suggest("--data.batch_siz", ["--data.batch_size", "--data.root"]) == "; did you mean --data.batch_size?"
    assert suggest("--model.depth", ["--data.batch_size", "--data.root"]) == ""


def test_the_code_that_raised_an_error() -> None:
    with pytest.raises(UserError) as ours:
        require("lr", 0, False, "above 0")
    with pytest.raises(TypeError) as theirs:
        torch.nn.Linear("two", 2)  # type: ignore[arg-type]
    assert raised_in(ours.value) == [(__name__, "test_the_code_that_raised_an_error"), ("cifar_lit.errors", "require")]
    assert raised_in(theirs.value)[-1][0].startswith("torch.")
    assert raised_in(ValueError("never raised")) == []


FAILURES: list[tuple[BaseException, str]] = [
    (MemoryError(), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough"), "out of memory"),
    (RuntimeError("could not create a primitive"), "out of memory"),
    (RuntimeError("std::bad_alloc"), "out of memory"),
    (
        RuntimeError("[/third_party/gloo/pair.cc:561] Connection closed"),
        "another process of this training exited, so this one exits",
    ),
    (torch.distributed.DistNetworkError("lost"), "another process of this training exited"),
    (
        OSError(errno.ENOSPC, "No space left on device"),
        "the disk is full ([Errno 28] No space left on device)",
    ),
    (OSError(errno.EDQUOT, "Quota exceeded"), "the disk is full"),
    (OSError(errno.EFBIG, "File too large"), "the disk is full"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    (
        OSError(errno.EMFILE, "Too many open files"),
        "too many open files ([Errno 24] Too many open files): raise the limit",
    ),
    (OSError(errno.EROFS, "Read-only file system", "results.json"), "[Errno 30] Read-only file system: 'results.json'"),
    (OSError(errno.ESTALE, "Stale file handle"), "[Errno 116] Stale file handle"),
]


@pytest.mark.parametrize(("error", "expected"), FAILURES, ids=[repr(error) for error, _ in FAILURES])
def test_what_the_machine_could_not_do_is_explained(error: BaseException, expected: str) -> None:
    assert explain_failure(error).startswith(expected)


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), RuntimeError("could not create a friend"), OSError(errno.ENOENT, "lost"), KeyError("out")],
    ids=repr,
)
def test_any_other_error_is_not(error: BaseException) -> None:
    assert explain_failure(error) == ""


def test_a_fit_that_runs_out_of_memory_ends_in_one_line(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_step(3, fail, monkeypatch)
    assert refused(["fit", *tiny_args, *FEW_EPOCHS]) == (1, "error: out of memory: reduce --data.batch_size")
