"""Predictions: the same as those that a test counts, from wherever and whatever the pictures are."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_lit.cli import main
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.module import ImageClassifier
from cifar_lit.predict import find_pictures, predict
from tests.conftest import RUN, tiny_picture

Predicted = Callable[..., tuple[int, list[list[str]], str]]


@pytest.fixture
def predicted(run: str, capsys: pytest.CaptureFixture[str]) -> Predicted:
    """Give a function that predicts with the tiny run: exit code, lines of CSV, what was printed on standard error."""

    def call(*args: str) -> tuple[int, list[list[str]], str]:
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(RUN), *args, "--format", "csv"])
        printed = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, list(csv.reader(io.StringIO(printed.out)))[1:], printed.err

    return call


def test_it_agrees_with_the_test_of_the_run(predicted: Predicted) -> None:
    code, lines, _ = predicted("tiny/test")
    assert (code, len(lines)) == (0, 24)
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)
    right = sum(Path(path).parent.name == label for path, label, *_ in lines)
    assert right / 24 == pytest.approx(json.loads((RUN / "results.json").read_text())["Accuracy/test"])


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "glob", "files"])
def test_folders_archives_globs_and_files_give_the_same(kind: str, predicted: Predicted) -> None:
    _, expected, _ = predicted("tiny/test")
    if kind == "zip":
        with zipfile.ZipFile("pictures.zip", "w") as packed:
            for path in Path("tiny/test").rglob("*.*"):
                packed.write(path)
    elif kind == "tar.gz":
        with tarfile.open("pictures.tar.gz", "w:gz") as tar:
            tar.add("tiny/test")
    files = [line[0] for line in expected]
    paths = {"glob": ["tiny/test/*/1*"], "files": files}.get(kind, [f"pictures.{kind}"])
    code, lines, _ = predicted(*paths)
    assert code == 0
    key = [line[0].removeprefix(f"pictures.{kind}/") for line in lines]
    assert sorted(zip(key, (line[1:] for line in lines), strict=True)) == sorted((x[0], x[1:]) for x in expected)


def test_a_broken_picture_does_not_stop_the_others(predicted: Predicted) -> None:
    Path("odd").mkdir()
    Path("odd/a.jpg").write_bytes(b"no picture")
    tiny_picture("dark", 1).resize((300, 20)).convert("CMYK").save("odd/b.jpg")
    Image.new("I;16", (7, 90)).save("odd/c.png")
    tiny_picture("green", 1).convert("RGBA").save("odd/d.webp")
    Path("odd/notes.txt").write_text("not asked for")
    code, lines, err = predicted("odd")
    assert code == 1
    assert [line[0] for line in lines] == ["odd/b.jpg", "odd/c.png", "odd/d.webp"]
    assert [line for line in err.splitlines() if line.startswith("error")] == ["error: odd/a.jpg is not a picture"]


def test_standard_input(predicted: Predicted, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path("tiny/test/dark/101.png").read_bytes()
    _, (expected,), _ = predicted("tiny/test/dark/101.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, (line,), _ = predicted("-")
    assert (code, line[0], line[1:]) == (0, "-", expected[1:])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([str(RUN), "nowhere"], "nowhere: there is no such picture"),
        ([str(RUN), "empty"], "empty: there is no such picture, and no folder or archive with one"),
        ([str(RUN), "half.zip"], "error: half.zip is not a whole .tar, .tar.gz or .zip archive"),
        (["nothing", "tiny"], "nothing is neither a checkpoint nor a run's folder"),
        ([str(RUN), "tiny", "--top_k", "0"], "--top_k is 0: give 1 or more"),
        ([str(RUN), "tiny", "--device", "abacus"], "--device is abacus, which cannot be had here"),
        ([str(RUN)], "the following arguments are required: PATH"),
        ([str(RUN), "tiny", "--top", "2"], "unrecognized arguments: --top"),
    ],
)
def test_bad_arguments_end_in_one_line(
    args: list[str], expected: str, run: str, refused: Callable[[list[str]], tuple[int, str]]
) -> None:
    Path("empty").mkdir()
    Path("half.zip").write_bytes(b"PK")
    code, line = refused(["predict", *args])
    assert code == 2
    assert expected in line


def test_the_formats_say_the_same(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for style in ("table", "csv", "json", "jsonl"):
        with pytest.raises(SystemExit):
            main(["predict", str(RUN), "tiny/test/dark", "--format", style, "--top_k", "2"])
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


def test_a_model_predicts_from_python(run: str, tiny_root: Path) -> None:
    model = ImageClassifier.from_run(RUN)
    data = CIFAR10DataModule(source="images", root=str(tiny_root))
    data.setup("test")
    assert data.test is not None
    probabilities = model.predict(data.test.images)
    assert probabilities.shape == (24, 3)
    assert torch.allclose(probabilities.sum(1), torch.ones(24), atol=1e-5)
    assert torch.allclose(model.predict(data.test.images / 255, batch_size=7), probabilities, atol=1e-5)
    by_hand = torch.softmax(model(data.test.images / 255), 1)
    assert torch.allclose(probabilities, by_hand, atol=1e-5)
    views = model.predict(data.test.images, views="mirror")
    assert not torch.allclose(views, probabilities, atol=1e-6)
    files = predict(model, find_pictures([str(tiny_root / "test")]), top_k=9)
    assert [(len(one.top), one.top[0][0]) for one in files] == [
        (3, model.classes[label]) for label in probabilities.argmax(1).tolist()
    ]
    Path("odd.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"odd.jpg is not a picture"):
        next(predict(model, find_pictures(["odd.jpg"])))


def test_weights_that_do_not_fit_are_named(run: str) -> None:
    path = RUN / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["net.layers.conv1.bias"]
    torch.save(checkpoint, "odd.ckpt")
    with pytest.raises(ValueError, match=r"(?s)odd.ckpt does not fit its network: .*conv1.bias"):
        ImageClassifier.from_run("odd.ckpt")
