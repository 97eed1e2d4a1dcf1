"""Exported files: they compute what the model does, take any number of images, and say nothing of this machine."""

import contextlib
import json
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor, nn

from cifar_lit import Run
from cifar_lit.commands import export as exporting
from cifar_lit.commands.export import check, export
from cifar_lit.commands.export_folder import writing
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, StrongCNN, TutorialCNN
from tests.helpers.runs import RUN, Refused

IMAGES = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FOLDER = RUN / "export"


@pytest.fixture(autouse=True)
def _fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "NUM_CHECKED", 100)  # of 1,000


NUM_CHECKED = exporting.NUM_CHECKED


def test_as_many_images_are_checked_as_the_readme_says() -> None:
    assert NUM_CHECKED == 1000


def exported(*args: str) -> None:
    assert main(["export", str(RUN), *args]) == 0


def a_model(net: Any = TutorialCNN) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(classes=list("abc"), net=net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).eval()


def expected_logits(model: ImageClassifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images / 255)
    return logits


def test_a_run_in_all_formats(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "NUM_TIMED", 1)
    exported("--to", "onnx", "pt2", "safetensors", "--benchmark")
    printed = capsys.readouterr().out
    assert "12 images of the run's own data and 88 synthetic images" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("checked"))
    assert len(re.findall(r"^(?:PyTorch|model\.\w+) +[\d,]+$", printed, re.MULTILINE)) == 4
    names = ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors"]
    assert sorted(path.name for path in FOLDER.iterdir()) == names
    model = Run(RUN).model()
    logits = expected_logits(model, IMAGES)

    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx")
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(uint8)", [3, 32, 32])]
    for size in (1, 7, 40):
        (found,) = session.run(["logits"], {"images": IMAGES[:size].numpy()})
        assert torch.allclose(torch.from_numpy(found), logits[:size], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == model.classes
    codes = re.findall("```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    (code,) = (part for part in codes if "onnxruntime" in part)
    with contextlib.chdir(FOLDER):
        Image.linear_gradient("L").resize((60, 90)).save("photo.jpg")
        values: dict[str, Any] = {}
        exec(code, values)
        assert torch.from_numpy(values["logits"]).softmax(1).allclose(model.predict(["photo.jpg"]), atol=1e-5)
        Path("photo.jpg").unlink()

    files = {"classes.json": ""}
    network = torch.export.load(str(FOLDER / "model.pt2"), extra_files=files).module()
    for size in (1, 7, 40):
        assert torch.allclose(network(IMAGES[:size]), logits[:size], atol=1e-6)
    assert json.loads(files["classes.json"]) == model.classes

    again = Run(FOLDER).model()
    assert again.classes == model.classes
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    for path in FOLDER.iterdir():  # neither images nor folders of this machine are inside
        parts = [path.read_bytes()]
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        assert not any(str(Path.cwd()).encode() in part or b"cifar_lit/" in part for part in parts), path
    assert (FOLDER / "model.pt2").stat().st_size < 1.2 * (FOLDER / "model.safetensors").stat().st_size


@pytest.mark.parametrize("net", [FastCNN, pytest.param(StrongCNN, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "pt2", "safetensors"])
def test_every_network_can_be_exported(net: type[nn.Module], kind: str, tmp_path: Path) -> None:
    model = a_model(net)
    difference, runs = export(model, kind, IMAGES, tmp_path)
    assert difference < 1e-5
    assert torch.allclose(runs(IMAGES[:3]), expected_logits(model, IMAGES[:3]), atol=1e-5)


def test_a_file_that_computes_something_else_is_not_kept(
    run: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(nn.Module):
        def __init__(self, model: ImageClassifier) -> None:
            super().__init__()
            self.model, self.classes = model, model.classes

        def forward(self, images: Tensor) -> Tensor:
            return -1 * self.model.forward(images)

    write = exporting.write_pt2
    monkeypatch.setattr(exporting, "write_pt2", lambda model, *args: write(cast(Any, Wrong(model).eval()), *args))
    code, line = refused(["export", str(RUN), "--to", "pt2"])
    assert code == 1
    assert re.search(r"model.pt2 is not kept: it predicts another class for \d+ of 100 images", line)
    assert list(FOLDER.iterdir()) == []


def test_the_comparison() -> None:
    expected = torch.tensor([[1.0, 2.0], [20.0, 3.0]])
    assert check("it", expected + 1e-3, expected) == pytest.approx(1e-3, rel=1e-2)
    for found in (expected + 3e-3, expected.flip(1), expected * torch.nan):
        with pytest.raises(UserError, match=r"it is not kept: it predicts another class for \d of 2 images"):
            check("it", found, expected)


def test_a_checkpoint_alone_has_a_card_too(run: str) -> None:
    (RUN / "checkpoints/best.ckpt").rename("alone.ckpt")
    Path("tiny").rename("gone")
    assert main(["export", "alone.ckpt", "--to", "safetensors", "--output", "out"]) == 0
    assert "Not known" in Path("out/README.md").read_text()
    assert main(["export", "out", "--to", "safetensors", "--output", "again"]) == 0  # of an export, once more
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_damaged_exports_are_refused(run: str, refused: Refused) -> None:
    exported("--to", "safetensors")
    weights, config = FOLDER / "model.safetensors", FOLDER / "config.json"
    complete, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(complete[:-1] + bytes([complete[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model.safetensors is damaged, .*config.json: checksum mismatch"):
        Run(FOLDER).model()
    weights.write_bytes(complete)
    for args in (["test", str(FOLDER)], ["test", str(RUN), str(FOLDER)], ["fit", "--ckpt_path", str(weights)]):
        code, line = refused(args)
        assert code == 2
        assert "model.safetensors is an export, which has no" in line
    for bad in ("{", "[]", '{"hyper_parameters": {}, "sha256": ""}'):
        config.write_text(bad)
        with pytest.raises(UserError, match=r"config.json does not describe a model of this project"):
            Run(FOLDER).model()
    for old, new, expected in (
        ('"lr": 0.01', '"lr": 0.01, "newer": 1', "has settings that this version does not know: newer"),
        ('"lr": 0.01', '"lr": -1', "model.safetensors: `lr` is -1"),
        ("cifar_lit.networks.tutorial.", "evil_package.", "evil_package.TutorialCNN is of another package"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=expected):
            Run(FOLDER).model()
    config.write_text(text)
    Run(FOLDER).model()


def test_bad_arguments_end_in_one_line(run: str, refused: Refused) -> None:
    for args, expected in (
        ([str(RUN)], "the following arguments are required: --to"),
        ([str(RUN), "--to", "tflite"], "--to is tflite: must be one of onnx, pt2, safetensors"),
        (["nothing", "--to", "pt2"], "nothing: no such checkpoint"),
        ([str(RUN), "--to", "safetensors", "--input", "float"], "--input is float: only onnx and pt2 have an input"),
        ([str(RUN), "--to", "pt2", "--output", "tiny/train/dark/1.png"], "--output is tiny/train/dark/1.png"),
    ):
        code, line = refused(["export", *args])
        assert code == 2
        assert expected in line


def test_a_folder_of_something_else_is_left_alone(run: str, refused: Refused) -> None:
    Path("mine").mkdir()
    Path("mine/README.md").write_text("---\ntitle: mine\n---\n")
    code, line = refused(["export", str(RUN), "--to", "pt2", "--output", "mine"])
    assert (code, Path("mine/README.md").read_text()) == (2, "---\ntitle: mine\n---\n")
    assert "--output is mine, which holds other files than an export: give another folder" in line
    exported("--to", "safetensors")
    code, line = refused(["export", str(FOLDER), "--to", "pt2", "--output", str(FOLDER)])
    assert "the folder of the model itself" in line


def test_what_a_killed_export_left_behind_refuses_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run = cast(Run, SimpleNamespace(file=tmp_path / "last.ckpt"))
    (folder / ".exportab_12345").mkdir(parents=True)
    (folder / ".exportab_12345/model.onnx").touch()
    mine = tmp_path / "mine"
    mine.touch()
    (folder / ".exportlinked_1").symlink_to(mine)
    for name in (".README.md.0123abcd.part", ".model.pt2.0123abcd.part", ".config.json.0123abcd.part", ".lock"):
        (folder / name).touch()
    with writing(folder, run):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        with pytest.raises(Timeout):
            FileLock(folder / ".lock", timeout=0).acquire()
        (folder / "README.md").touch()
    assert [path.name for path in folder.iterdir()] == ["README.md"]
    assert mine.exists()
    for name in (".exports", ".mine.part", ".README.md"):  # are of somebody else, and so is what lies beside them
        other = tmp_path / f"of{name}"
        other.mkdir()
        for left_over in (name, ".exportab_12345"):
            (other / left_over).touch()
        with pytest.raises(UserError, match="holds other files than an export"), writing(other, run):
            pass
        assert len(list(other.iterdir())) == 2


def test_the_card_has_the_scores_of_the_exported_checkpoint_only(run: str) -> None:
    exported("--to", "safetensors")
    assert "Accuracy on test, of one run" in (FOLDER / "README.md").read_text()
    assert main(["export", str(RUN / "checkpoints/last.ckpt"), "--to", "safetensors", "--output", "last"]) == 0
    assert "Not known: there are no results of a test." in Path("last/README.md").read_text()


def test_the_scores_of_earlier_weights_are_not_in_the_card(run: str) -> None:
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    torch.save({**checkpoint, "global_step": checkpoint["global_step"] + 6}, RUN / "checkpoints/best.ckpt")
    exported("--to", "safetensors")
    assert "Not known: there are no results of a test." in (FOLDER / "README.md").read_text()


def test_a_folder_holds_one_model(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "safetensors", "--output", "out")
    exported("--to", "pt2", "--output", "out")
    assert {"model.safetensors", "model.pt2", "config.json"} < {path.name for path in Path("out").iterdir()}
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1e-3)
    torch.save(checkpoint, "other.ckpt")
    assert main(["export", "other.ckpt", "--to", "safetensors", "--output", "out"]) == 0
    assert "files of another model are removed from out" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "pt2" not in Path("out/README.md").read_text()


def test_an_export_that_fails_leaves_the_earlier_one_and_what_is_not_ours(
    run: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported("--to", "safetensors", "pt2", "--output", "out")
    Path("out/model.tflite").write_text("mine")
    Path("out/model.onnx.data").write_text("of a large model")
    files = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1e-3)
    torch.save(checkpoint, "other.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "TOLERANCE", -1.0)
        assert refused(["export", "other.ckpt", "--to", "safetensors", "--output", "out"])[0] == 1
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == files
    assert main(["export", "other.ckpt", "--to", "safetensors", "--output", "out"]) == 0
    names = {"model.safetensors", "model.tflite", "config.json", "README.md"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert "tflite" not in Path("out/README.md").read_text()


def test_a_card_that_was_edited_stays(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "safetensors")
    card, new = FOLDER / "README.md", FOLDER / "README.new.md"
    edited = card.read_text().replace("library_name", "license: mit\nlibrary_name", 1)
    card.write_text(edited)
    assert "README.md was edited" not in capsys.readouterr().out
    exported("--to", "pt2")
    says = "README.md was edited, and stays as it is: the card of these files is README.new.md\n"
    assert capsys.readouterr().out.count(says) == 1
    assert card.read_text() == edited
    assert "model.pt2" in new.read_text()
    new.replace(card)  # its owner takes it
    exported("--to", "pt2")
    assert not new.exists()
    assert "README.new.md" not in capsys.readouterr().out
    card.write_text(edited)
    checkpoint = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1e-3)
    torch.save(checkpoint, RUN / "checkpoints/best.ckpt")
    exported("--to", "safetensors")
    exported("--to", "pt2")  # of the same model as the new card
    assert {"model.safetensors", "model.pt2"} < {path.name for path in FOLDER.iterdir()}
    assert card.read_text() == edited


def test_a_card_of_an_earlier_version_is_set_aside(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "safetensors")
    card = FOLDER / "README.md"
    before = "".join(line for line in card.read_text().splitlines(keepends=True) if "written by" not in line)
    card.write_text(before)
    exported("--to", "pt2")
    assert "README.md, which an earlier version wrote, is README.old.md now\n" in capsys.readouterr().out
    assert (FOLDER / "README.old.md").read_text() == before
    assert "model.pt2" in card.read_text()
    assert not (FOLDER / "README.new.md").exists()
    assert (FOLDER / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["export", "export/.lock", "export/model.pt2"])
def test_nothing_is_written_through_a_link(name: str, run: str, refused: Refused) -> None:
    Path("elsewhere").mkdir()
    Path("alone").mkdir()
    (RUN / "checkpoints/best.ckpt").rename("alone/best.ckpt")
    for folder, source in ((RUN, RUN), (Path("alone"), Path("alone/best.ckpt"))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(Path("elsewhere").absolute())
        code, line = refused(["export", str(source), "--to", "safetensors"])
        assert (code, f"{folder / name} is a link to " in line) == (2, True), line
        assert "nothing is written in there; " in line
    assert list(Path("elsewhere").iterdir()) == []
    if name == "export/.lock":
        _, line = refused(["export", str(RUN), "--to", "safetensors", "--output", str(RUN / "export")])
        assert line == f"error: --output is {RUN}/export, whose .lock is a link: remove it, or give another folder"


def test_links_of_a_trusted_run_are_its_owners(run: str) -> None:
    Path("elsewhere").mkdir()
    FOLDER.symlink_to(Path("elsewhere").absolute())
    exported("--to", "safetensors", "--trust_run")
    assert Path("elsewhere/model.safetensors").exists()


def test_a_package_that_is_missing_is_named(run: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, line = refused(["export", str(RUN), "--to", "onnx"])
    assert code == 2
    assert line == "error: this needs onnxscript, which is not installed: pip install 'cifar-lit[export]'"


def test_pillow_images_are_predicted_as_files_are(run: str) -> None:
    model = Run(RUN).model()
    images = [Image.new("I;16", (7, 90), 40_000), Image.linear_gradient("L").rotate(30), Image.new("RGBA", (3, 3))]
    for number, image in enumerate(images):
        image.save(f"{number}.png")
    from_files = model.predict(["0.png", Path("1.png"), "2.png"])
    assert torch.equal(model.predict(images), from_files)
    assert model.predict([]).shape == (0, 3)
    Path("text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text.png"):
        model.predict(["0.png", "text.png"])
    with pytest.raises(UserError, match=r"`images` has the shape \(2, 3, 28, 28\): must be \(N, 3, 32, 32\)"):
        model.predict(torch.zeros(2, 3, 28, 28))
