"""``cifar-lit download``: one dataset, from a server on this machine."""

import re
from pathlib import Path

import pytest

from cifar_lit.data.cifar10 import ARCHIVES
from cifar_lit.main import main
from tests.helpers.cifar10 import pack, small_files, small_files_100
from tests.helpers.runs import Refused
from tests.helpers.server import Behaviour, serving


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_it_downloads_once_and_says_how_fast_and_from_where(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, archive = pack(small_files() if source == "cifar10" else small_files_100())
    monkeypatch.setitem(ARCHIVES, source, archive)
    behaviour = Behaviour(content)
    with serving(behaviour) as url:
        for _ in range(2):
            assert main(["download", "--data.source", source, "--data.root", "own", "--data.mirror", url]) == 0
    output = capsys.readouterr()
    assert re.search(rf"{archive.name}: \d\.\d MB in \d\.\d s, \d+\.\d\d MB/s, from {url}\n", output.err)
    assert output.out.splitlines() == [f"{archive.title} is in {Path('own').resolve()}"] * 2
    assert len(behaviour.requests) == 1
    assert (Path("own") / archive.folder / list(archive.members)[-1]).is_file()


@pytest.mark.parametrize("source", ["images", "synthetic"])
def test_what_needs_no_download_says_so(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--data.source", source]) == 0
    assert capsys.readouterr().out == f"--data.source {source} needs no download\n"


@pytest.mark.parametrize("source", ["images", "synthetic"])
def test_a_mirror_of_what_has_none_is_refused(source: str, refused: Refused) -> None:
    code, line = refused(["download", "--data.source", source, "--data.mirror", "https://mirror.example/"])
    assert code == 2
    expected = f"must be left out: source {source} has no archive to download"
    assert line == f"error: --data.mirror is https://mirror.example/: {expected}"


def test_an_archive_under_the_name_of_another_is_named_and_kept(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = {"cifar10": pack(small_files()), "cifar100": pack(small_files_100())}
    for source, (_, archive) in archives.items():
        monkeypatch.setitem(ARCHIVES, source, archive)
    Path("data").mkdir()
    for wanted, there in (("cifar10", "cifar100"), ("cifar100", "cifar10")):
        (content, other), path = archives[there], Path("data") / archives[wanted][1].name
        path.write_bytes(content)
        code, line = refused(["download", "--data.source", wanted])
        assert code == 2
        assert line.endswith(f"{path} is the archive of {other.title}: rename it to {other.name}")
        assert path.read_bytes() == content
        path.unlink()
