"""Exported files: they compute what the model does, take any number of images, and say nothing of this machine."""

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from cifar_lit import export as exporting
from cifar_lit.card import write_card
from cifar_lit.cli import main
from cifar_lit.export import FromBytes, check, export
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, StrongCNN, TutorialCNN
from cifar_lit.sources.picture import read_picture
from tests.conftest import FEW_EPOCHS, RUN

Refused = Callable[[list[str]], tuple[int, str]]
IMAGES = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FOLDER = RUN / "export"


def exported(*args: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(RUN), *args])
    assert stopped.value.code == 0


def a_model(net: Any = TutorialCNN) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(classes=list("abc"), net=net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).eval()


def expected_logits(model: ImageClassifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images / 255)
    return logits


def test_a_run_in_all_formats(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "onnx", "pt2", "safetensors", "--benchmark")
    printed = capsys.readouterr().out
    assert "12 images of the run's own data and 988 images that are drawn by code" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("held"))
    assert len(re.findall(r"^(?:PyTorch|model\.\w+) +[\d,]+$", printed, re.MULTILINE)) == 4
    names = ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors"]
    assert sorted(path.name for path in FOLDER.iterdir()) == names
    model = ImageClassifier.from_run(RUN)
    logits = expected_logits(model, IMAGES)

    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx")
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(uint8)", [3, 32, 32])]
    for size in (1, 7, 40):
        (found,) = session.run(["logits"], {"images": IMAGES[:size].numpy()})
        assert torch.allclose(torch.from_numpy(found), logits[:size], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == model.classes

    files = {"classes.json": ""}
    network = torch.export.load(str(FOLDER / "model.pt2"), extra_files=files).module()
    for size in (1, 7, 40):
        assert torch.allclose(network(IMAGES[:size]), logits[:size], atol=1e-6)
    assert json.loads(files["classes.json"]) == model.classes

    again = ImageClassifier.from_run(FOLDER)
    assert again.classes == model.classes
    assert torch.equal(again.predict(IMAGES), model.predict(IMAGES))
    for path in FOLDER.iterdir():  # neither the pictures nor the places of this machine are given away
        parts = [path.read_bytes()]
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        assert not any(str(Path.cwd()).encode() in part or b"cifar_lit/export.py" in part for part in parts), path
    assert (FOLDER / "model.pt2").stat().st_size < 1.2 * (FOLDER / "model.safetensors").stat().st_size


def test_files_for_numbers_take_numbers(run: str) -> None:
    exported("--to", "onnx", "pt2", "--input", "float", "--output", "elsewhere")
    logits = expected_logits(ImageClassifier.from_run(RUN), IMAGES)
    session = pytest.importorskip("onnxruntime").InferenceSession("elsewhere/model.onnx")
    floats = (IMAGES / 255).contiguous()
    (found,) = session.run(["logits"], {"images": floats.numpy()})
    assert np.allclose(found, logits, atol=1e-5)
    assert torch.allclose(torch.export.load("elsewhere/model.pt2").module()(floats), logits, atol=1e-6)


@pytest.mark.parametrize("net", [FastCNN, pytest.param(StrongCNN, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
def test_every_network_can_be_exported(net: type[nn.Module], kind: str, tmp_path: Path) -> None:
    model = a_model(net)
    difference, runs = export(model, kind, IMAGES, tmp_path)
    assert difference < 1e-5
    assert torch.allclose(runs(IMAGES[:3]), expected_logits(model, IMAGES[:3]), atol=1e-5)


def test_a_file_that_computes_something_else_is_not_kept(run: str, refused: Refused, monkeypatch: Any) -> None:
    class Wrong(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return -1 * FromBytes(self.model).forward(images)

    write = exporting.write_pt2
    monkeypatch.setattr(exporting, "write_pt2", lambda network, *args: write(Wrong(network.model).eval(), *args))
    code, line = refused(["export", str(RUN), "--to", "pt2"])
    assert code == 1
    assert re.search(r"model.pt2 is not kept: it gives \d+ of 1,000 images another label", line)
    assert list(FOLDER.iterdir()) == []


def test_the_comparison() -> None:
    expected = torch.tensor([[1.0, 2.0], [20.0, 3.0]])
    assert check("it", expected + 1e-3, expected) == pytest.approx(1e-3, rel=1e-2)
    for found in (expected + 3e-3, expected.flip(1), expected * torch.nan):
        with pytest.raises(RuntimeError, match=r"it is not kept: it gives \d of 2 images another label"):
            check("it", found, expected)


def test_the_card_is_what_the_hub_reads(run: str) -> None:
    exported("--to", "safetensors")
    card = (FOLDER / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "image-classification"
    results = json.loads((RUN / "results.json").read_text())
    (entry,) = metadata["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == round(results["Accuracy/test"], 4)
    assert entry["dataset"] == {"name": "own pictures", "type": "own-pictures", "split": "test"}
    titles = re.findall("^## (.*)$", card, re.MULTILINE)
    assert titles == ["Use", "Files", "Classes", "Data", "Training", "Figures", "Limits"]
    assert "bright, dark, green" in card
    assert "48 to train, 12 to choose the checkpoint, 24 to test" in card
    assert "onnxruntime" not in card  # what was not exported is not explained
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.eval_results[0].metric_value == round(results["Accuracy/test"], 4)


def test_the_card_of_an_onnx_file_says_how_it_is_used(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "onnx", "pt2", "safetensors")
    model = ImageClassifier.from_run(RUN)
    card = (FOLDER / "README.md").read_text()
    codes = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len(codes) == 3
    picture = Image.linear_gradient("L").resize((60, 90)).convert("RGB")
    picture.putalpha(Image.radial_gradient("L").resize((60, 90)))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(FOLDER / "picture.png", exif=exif)
    names = {}
    with contextlib.chdir(FOLDER):
        for code in codes:
            names_of = {"images": IMAGES}
            capsys.readouterr()
            exec(code.replace("picture.jpg", "picture.png"), names_of)
            names[code] = capsys.readouterr().out.strip()
            if "onnxruntime" in code:
                logits = torch.from_numpy(names_of["logits"])
        expected = model.predict([Image.open("picture.png")])
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)
    label = model.classes[int(expected.argmax())]
    assert sorted(names.values()) == sorted(["", label, label])


def test_the_card_of_cifar10_names_it_as_the_hub_does(tmp_path: Path) -> None:
    results = {"Accuracy/test": 0.75, "num_train": 5, "num_val": 0, "num_test": 9}
    write_card(tmp_path, a_model(), {"source": "cifar10", "root": "/home/me"}, results)
    card = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["datasets"] == ["uoft-cs/cifar10"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"
    assert "CIFAR-10: images 5 to train, 9 to test." in card
    assert "/home/me" not in card


def test_a_checkpoint_alone_has_a_card_too(run: str) -> None:
    (RUN / "checkpoints/best.ckpt").rename("alone.ckpt")
    Path("tiny").rename("gone")
    main_args = ["export", "alone.ckpt", "--to", "safetensors", "--output", "out"]
    with pytest.raises(SystemExit):
        main(main_args)
    assert "Not known" in Path("out/README.md").read_text()
    with pytest.raises(SystemExit) as stopped:  # and an export can be exported once more
        main(["export", "out", "--to", "safetensors", "--output", "again"])
    assert stopped.value.code == 0
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_damaged_exports_are_refused(run: str, refused: Refused) -> None:
    exported("--to", "safetensors")
    weights, config = FOLDER / "model.safetensors", FOLDER / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged, or not the one that"):
        ImageClassifier.from_run(FOLDER)
    weights.write_bytes(whole)
    for args in (["test", str(FOLDER)], ["test", str(RUN), str(FOLDER)], ["fit", "--ckpt_path", str(weights)]):
        code, line = refused(args)
        assert code == 2
        assert "model.safetensors is an export, which knows nothing of its data: give the run" in line
    for bad in ("{", "[]", '{"hyper_parameters": {}, "sha256": ""}'):
        config.write_text(bad)
        with pytest.raises(ValueError, match=r"config.json is not that of a model of this project"):
            ImageClassifier.from_run(FOLDER)
    for old, new, expected in (
        ('"lr": 0.01', '"lr": 0.01, "newer": 1', "has settings that this version does not take: .*newer"),
        ('"mean": [', '"mean": [1, ', "has settings that this version does not take"),
        ("cifar_lit.networks.tutorial.", "evil_package.", "names a network of evil_package: import that first"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=expected):
            ImageClassifier.from_run(FOLDER)
    config.write_text(text)
    ImageClassifier.from_run(FOLDER)


def test_bad_arguments_end_in_one_line(run: str, refused: Refused) -> None:
    for args, expected in (
        ([str(RUN)], "the following arguments are required: --to"),
        ([str(RUN), "--to", "tflite"], "argument --to: invalid choice: 'tflite'"),
        (["nothing", "--to", "pt2"], "nothing is neither a checkpoint nor a run's folder"),
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
    assert "--output is mine, which holds something else than an export: give another folder" in line
    exported("--to", "safetensors")
    code, line = refused(["export", str(FOLDER), "--to", "pt2", "--output", str(FOLDER)])
    assert "where the model itself lies" in line


def test_a_folder_holds_one_model(run: str, tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    exported("--to", "safetensors", "--output", "out")
    exported("--to", "pt2", "--output", "out")
    assert {"model.safetensors", "model.pt2", "config.json"} < {path.name for path in Path("out").iterdir()}
    main(["fit", *tiny_args, *FEW_EPOCHS])
    with pytest.raises(SystemExit):
        main(["export", "lightning_logs/version_1", "--to", "pt2", "--output", "out"])
    assert "the files of another model in out are removed" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} == {"model.pt2", "README.md"}
    assert "safetensors" not in Path("out/README.md").read_text()


def test_a_package_that_is_missing_is_named(run: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    code, line = refused(["export", str(RUN), "--to", "onnx"])
    assert code == 2
    assert line == "error: this needs onnxscript, which is not installed: pip install 'cifar-lit[export]'"


def test_pictures_of_pillow_are_taken_as_files_are(run: str) -> None:
    model = ImageClassifier.from_run(RUN)
    pictures = [Image.new("I;16", (7, 90), 40_000), Image.linear_gradient("L").rotate(30), Image.new("RGBA", (3, 3))]
    read = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        read.append(torch.tensor(read_picture(file)).permute(2, 0, 1))
    assert torch.equal(model.predict(pictures), model.predict(torch.stack(read)))
    pictures[0].save("one.png")
    assert torch.equal(model.predict(["one.png", Path("one.png")]), model.predict([pictures[0]] * 2))
    assert model.predict([]).shape == (0, 3)
    Path("text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^text.png is not a picture$"):
        model.predict(["one.png", "text.png"])
    with pytest.raises(ValueError, match=r"images has the shape \(2, 3, 28, 28\): give \(N, 3, 32, 32\)"):
        model.predict(torch.zeros(2, 3, 28, 28))
