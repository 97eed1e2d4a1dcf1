"""Predictions: the same as those of the test, from wherever and whatever the images are."""

import csv
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cifar_lit import Run
from cifar_lit.commands.predict import Content, _batches, _move, _read, find_images, predict, write
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TutorialCNN
from tests.helpers.images import encode, tiny_image
from tests.helpers.runs import RUN, Refused, read_results

Predicted = Callable[..., tuple[int, list[list[str]], str]]


@pytest.fixture
def predicted(run: str, capsys: pytest.CaptureFixture[str]) -> Predicted:
    """Return a function that predicts with the tiny run: exit code, lines of CSV, standard error."""

    def call(*args: str) -> tuple[int, list[list[str]], str]:
        code = main(["predict", str(RUN), *args, "--format", "csv"])
        printed = capsys.readouterr()
        return code, list(csv.reader(io.StringIO(printed.out)))[1:], printed.err

    return call


def test_it_agrees_with_the_test_of_the_run(predicted: Predicted) -> None:
    code, lines, _ = predicted("tiny/test")
    assert (code, len(lines)) == (0, 24)
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    right = sum(Path(path).parent.name == label for path, label, *_ in lines)
    assert right / 24 == pytest.approx(read_results()["Accuracy/test"])


def test_folders_archives_globs_and_files_give_the_same(predicted: Predicted) -> None:
    _, expected, _ = predicted("tiny/test")
    with zipfile.ZipFile("images.zip", "w") as packed:
        for path in Path("tiny/test").rglob("*.*"):
            packed.write(path)
    with tarfile.open("images.tar.gz", "w:gz") as tar:
        tar.add("tiny/test")
    for paths in (["images.zip"], ["images.tar.gz"], ["tiny/test/*/1*"], [line[0] for line in expected]):
        code, lines, _ = predicted(*paths)
        assert code == 0
        found = [[line[0].removeprefix(f"{paths[0]}/"), *line[1:]] for line in lines]
        assert sorted(found) == sorted(expected)


def test_a_broken_image_does_not_stop_the_others(predicted: Predicted) -> None:
    Path("odd").mkdir()
    Path("odd/a.jpg").write_bytes(b"no image")
    tiny_image("dark", 1).resize((300, 20)).convert("CMYK").save("odd/b.jpg")
    Image.new("I;16", (7, 90)).save("odd/c.png")
    tiny_image("green", 1).convert("RGBA").save("odd/d.webp")
    Path("odd/notes.txt").write_text("not asked for")
    Path("odd/.hidden.png").write_bytes(b"not asked for")
    Path("odd/folder.png").mkdir()
    code, lines, err = predicted("odd")
    assert code == 1
    assert [line[0] for line in lines] == ["odd/b.jpg", "odd/c.png", "odd/d.webp"]
    assert [line for line in err.splitlines() if line.startswith("error")] == ["error: odd/a.jpg is not an image"]


def test_few_large_files_of_an_archive_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_lit.commands.predict.MAX_BYTES", 25)
    contents: list[Content] = [(str(i), bytes(10)) for i in range(7)]
    assert [[name for name, _ in batch] for batch in _batches(iter(contents))] == [list("012"), list("345"), ["6"]]
    assert [len(batch) for batch in _batches((str(i), Path("x")) for i in range(300))] == [256, 44]


def test_any_name_and_damaged_archives(predicted: Predicted) -> None:
    Path("odd/deep/er").mkdir(parents=True)
    for number, name in enumerate(("a.jfif", "b", "deep/er/c.TIF")):
        tiny_image("dark", number).save(f"odd/{name}", "TIFF" if name.endswith("TIF") else "JPEG")
    Path("odd/notes.txt").write_text("not asked for")
    code, lines, err = predicted("odd")
    assert (code, [line[0] for line in lines]) == (0, ["odd/a.jfif", "odd/b", "odd/deep/er/c.TIF"])
    assert "passed over in odd: 1 not pictures (notes.txt)" in err

    paths = sorted(Path("tiny/test").rglob("*.*"))
    with zipfile.ZipFile("damaged", "w") as packed:  # known by its content
        for path in paths:
            packed.write(path)
    content = Path("damaged").read_bytes()
    Path("damaged").write_bytes(content.replace(paths[3].read_bytes()[-20:], bytes(20), 1))
    code, lines, err = predicted("damaged", str(paths[0]))
    assert (code, len(lines)) == (1, 24)
    assert f"error: damaged/{paths[3]} cannot be read (Bad CRC-32" in err

    with tarfile.open("cut.tar", "w") as tar:
        for path in paths:
            tar.add(path)
    content = Path("cut.tar").read_bytes()
    Path("cut.tar").write_bytes(content[: content.index(str(paths[5]).encode())])
    code, lines, err = predicted("cut.tar", str(paths[0]))
    assert (code, len(lines)) == (1, 6)
    assert "error: cut.tar is not a complete .tar, .tar.gz or .zip archive: empty header" in err


def test_a_link_to_nothing_does_not_stop_the_others(predicted: Predicted) -> None:
    Path("pictures").mkdir()
    tiny_image("dark", 1).save("pictures/a.png")
    Path("pictures/b.png").symlink_to("nowhere")
    Path("pictures/c.png").symlink_to("c.png")
    for paths in (["pictures/*.png"], ["pictures/a.png", "pictures/b.png", "pictures/c.png"]):
        code, lines, err = predicted(*paths)
        assert (code, [line[0] for line in lines]) == (1, ["pictures/a.png"])
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert errors == [f"error: pictures/{name}.png is a link to nothing" for name in "bc"]


def test_each_picture_is_classified_once(predicted: Predicted) -> None:
    _, expected, _ = predicted("tiny/test")
    for paths in (["tiny/test/**"], ["tiny/test", "./tiny/test/dark"], ["tiny/test/", *(line[0] for line in expected)]):
        assert predicted(*paths)[:2] == (0, expected)


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz", "images.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_is_twice_in_an_archive_the_later_counts(name: str) -> None:
    model = ImageClassifier(classes=["a", "b"], net=TutorialCNN)
    files = [(f"{i % 3}.png", encode(tiny_image("dark", i), ".png")) for i in range(5)]
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w") as packed:
            for file, content in files:
                packed.writestr(file, content)
    else:
        with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as tar:
            for file, content in files:
                member = tarfile.TarInfo(file)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    found = find_images([name])
    contents = dict(itertools.chain.from_iterable(itertools.starmap(_read, found)))
    assert contents == {f"{name}/{file}": content for file, content in files}
    assert len(list(predict(model, found))) == 3


def test_more_than_is_read_of_a_file_is_not_read_of_standard_input(
    predicted: Predicted, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path("tiny/test/dark/101.png").read_bytes()
    for size, expected in (
        (len(content), ""),
        (len(content) - 1, f"error: - has more than {len(content) - 1:,} bytes"),
    ):
        monkeypatch.setattr("cifar_lit.commands.predict.MAX_BYTES", size)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        code, lines, err = predicted("-")
        assert (code, len(lines), err.strip()) == ((1, 0, expected) if expected else (0, 1, ""))


def test_standard_input(predicted: Predicted, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path("tiny/test/dark/101.png").read_bytes()
    _, (expected,), _ = predicted("tiny/test/dark/101.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, (line,), _ = predicted("-")
    assert (code, line[0], line[1:]) == (0, "-", expected[1:])


def test_bad_arguments_end_in_one_line(run: str, refused: Refused) -> None:
    Path("empty").mkdir()
    Path("half.zip").write_bytes(b"PK")
    for args, expected in (
        ([str(RUN), "nowhere"], "nowhere: no such image"),
        ([str(RUN), "many.jpg\n" * 1000], ": no such image, and no folder or archive with one"),
        ([str(RUN), "empty"], "empty: no such image, and no folder or archive with one"),
        ([str(RUN), "half.zip"], "error: half.zip is not a complete .tar, .tar.gz or .zip archive"),
        (["nothing", "tiny"], "nothing: no such checkpoint"),
        ([str(RUN), "tiny", "--top_k", "0"], "--top_k is 0: must be at least 1"),
        ([str(RUN), "tiny", "--device", "abacus"], "--device is abacus: not available here"),
        ([str(RUN)], "the following arguments are required: PATH"),
        ([str(RUN), "tiny", "--top", "2"], "unrecognized arguments: --top"),
    ):
        code, line = refused(["predict", *args])
        assert code == 2
        assert expected in line


def test_the_formats_say_the_same(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for style in ("table", "csv", "json", "jsonl"):
        assert main(["predict", str(RUN), "tiny/test/dark", "--format", style, "--top_k", "2"]) == 0
        printed[style] = capsys.readouterr().out
    found = json.loads(printed["json"])
    assert [json.loads(line) for line in printed["jsonl"].splitlines()] == found
    assert len(found) == len(printed["table"].splitlines()) == len(printed["csv"].splitlines()) - 1 == 8
    for one, line, row in zip(found, printed["table"].splitlines(), printed["csv"].splitlines()[1:], strict=True):
        label, probability = one["top"][0]["label"], one["top"][0]["probability"]
        assert len(one["top"]) == 2
        assert f"{label} {probability:.3f}" in line
        assert len(line) <= 80
        assert row.startswith(f"{one['path']},{label},{probability:.6f},")


def test_predictions_from_python_are_those_of_the_model(run: str, tiny_root: Path) -> None:
    model, data = Run(RUN).model(), Run(RUN).datamodule()
    images = data.source.load("test").images  # as the files lie in the folder
    probabilities = model.predict(images.permute(0, 3, 1, 2))
    found = list(predict(model, find_images([str(tiny_root / "test")]), top_k=9))
    tops = [top for _, top in found if not isinstance(top, Exception)]
    assert [[label for label, _ in top] for top in tops] == [
        [model.classes[label] for label in row] for row in probabilities.argsort(1, descending=True).tolist()
    ]
    assert [top[0][1] for top in tops] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-6)
    Path("odd.jpg").write_bytes(b"no image")
    ((name, error),) = predict(model, find_images(["odd.jpg"]))
    assert (name, str(error)) == ("odd.jpg", "is not an image")


ODD_NAMES = ("=1+1.png", "-x.png", "@a.png", "\tb.png", "\x1b[2J.png", 'quo"te,\n.png', "b\udcff.png", "ü.png")


def test_a_csv_file_runs_nothing_and_is_the_same_bytes_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    top = [("=cmd()", 0.5), ("-1", 0.25), ("猫", 0.25)]
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", newline="\r\n")
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setattr("cifar_lit.commands.predict.Run", lambda *_, **__: SimpleNamespace(model=lambda: None))
    monkeypatch.setattr("cifar_lit.commands.predict._move", lambda *_: None)
    monkeypatch.setattr("cifar_lit.commands.predict.find_images", lambda _: [(None, list(ODD_NAMES))])
    monkeypatch.setattr("cifar_lit.commands.predict.predict", lambda *_, **__: ((name, top) for name in ODD_NAMES))
    assert main(["predict", "run", "path", "--format", "csv"]) == 0
    content = file.buffer.getvalue()
    assert b"\r" not in content
    rows = list(csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline="")))[1:]
    assert [row[1::2] for row in rows] == [["'=cmd()", "-1", "猫"]] * len(ODD_NAMES)
    assert not any(row[0].startswith(("=", "+", "-", "@", "\t")) for row in rows)
    assert [Path(row[0]) for row in rows] == [Path(name) for name in ODD_NAMES]


def test_names_command_no_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for style in ("table", "csv", "json", "jsonl"):
        file = Terminal()
        write(((name, [("cat\x1b]0;x\x07", 0.5)]) for name in ODD_NAMES), style, file)
        assert not set(file.getvalue()) & set("\x1b\x07\t\udcff"), style


@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99"])
def test_a_device_that_computes_nothing_is_refused(device: str) -> None:
    model = ImageClassifier(classes=["a", "b"], net=TutorialCNN)
    with pytest.raises(UserError, match=f"`device` is {device}: not available here"):
        _move(model, device)


def test_the_rows_of_an_archive_come_in_its_order() -> None:
    model = ImageClassifier(classes=["a", "b"], net=TutorialCNN)
    names = [f"{number}.png" for number in (3, 1, 4, 1 + 4, 9, 2, 6)]
    with zipfile.ZipFile("images.zip", "w") as packed:
        for name in names:
            packed.writestr(name, encode(tiny_image("dark", 1), ".png"))
    found = [name for name, _ in predict(model, find_images(["images.zip"]))]
    assert found == [f"images.zip/{name}" for name in names]
