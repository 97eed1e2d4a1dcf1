"""Model cards: what the Hub reads, code that runs, and what a card must not contain."""

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from cifar_lit import ImageClassifier, Run
from cifar_lit.evaluation.card import card_fingerprint, fingerprint, write_card
from cifar_lit.main import main
from cifar_lit.networks import ResNet18
from cifar_lit.results import Results
from tests.helpers.networks import WideNet
from tests.helpers.results import make_results
from tests.helpers.runs import RUN

FOLDER = RUN / "export"


def card_of(folder: Path, classes: list[str], data: dict[str, Any], results: Results | None) -> str:
    write_card(folder, ImageClassifier(classes=classes).eval(), data, results)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_card_names_the_dataset(tmp_path: Path) -> None:
    results = make_results({"Accuracy/test": 0.75})
    hub = {"name": "CIFAR-100", "type": "uoft-cs/cifar100", "split": "test"}
    metadata = yaml.safe_load(card_of(tmp_path, list("abc"), {"source": "cifar100"}, results).split("---")[1])
    assert (metadata["model-index"][0]["results"][0]["dataset"], metadata["datasets"]) == (hub, ["uoft-cs/cifar100"])
    card = card_of(tmp_path, list("abc"), {"source": "torchvision", "dataset": "EMNIST/letters"}, results)
    assert "# TutorialCNN on EMNIST/letters\n" in card


def test_a_class_without_test_images_has_no_accuracy(tmp_path: Path) -> None:
    metrics = {"Accuracy/test": 0.75, "Confusion/test": [[0, 0, 0], [1, 2, 0], [0, 0, 1]]}
    metrics |= {f"ClassAccuracy/test/{name}": value for name, value in (("a", 0.0), ("b", 0.667), ("c", 1.0))}
    card = card_of(tmp_path, list("abc"), {"source": "images"}, make_results(metrics))
    assert "|---|---|\n| b | 0.667 |\n| c | 1.000 |\n" in card


def test_the_card_of_a_run_is_what_the_hub_reads(run: str) -> None:
    assert main(["export", str(RUN), "--to", "safetensors"]) == 0
    card = (FOLDER / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "image-classification"
    results = Run(RUN).results
    assert results is not None
    accuracy = round(results.metrics["Accuracy/test"], 4)
    (entry,) = metadata["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == accuracy
    assert entry["dataset"] == {"name": "own images", "type": "own-images", "split": "test"}
    titles = re.findall("^## (.*)$", card, re.MULTILINE)
    assert titles == ["Use", "Files", "Classes", "Data", "Training", "Metrics", "Limits"]
    assert "bright, dark, green" in card
    assert "own images: 48 to train, 12 to choose the checkpoint, 24 to test.\n" in card
    assert "| bright | " in card
    assert f"Accuracy on test, of one run: {accuracy:.4f} (95 % interval " in card
    assert "onnxruntime" not in card  # what was not exported is not explained
    assert "\n\n\n" not in card
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.eval_results[0].metric_value == accuracy


@pytest.mark.parametrize(
    "formats", [["pt2", "safetensors"], pytest.param(["onnx", "pt2", "safetensors"], marks=pytest.mark.slow)]
)
def test_the_code_of_a_card_runs_and_agrees_with_the_model(
    formats: list[str], run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifar_lit.commands.export.NUM_CHECKED", 100)
    assert main(["export", str(RUN), "--to", *formats, "--input", "float"]) == 0
    model = Run(RUN).model()
    codes = re.findall("```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(codes) == len(formats)
    photo = Image.linear_gradient("L").resize((60, 90)).convert("RGB")
    photo.putalpha(Image.radial_gradient("L").resize((60, 90)))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(FOLDER / "photo.png", exif=exif)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    printed = []
    with contextlib.chdir(FOLDER):
        expected = model.predict(["photo.png"])
        for code in codes:
            names: dict[str, Any] = {"images": images}
            capsys.readouterr()
            exec(code.replace("photo.jpg", "photo.png"), names)
            printed.append(capsys.readouterr().out.strip())
            if "onnxruntime" in code:
                assert torch.allclose(torch.from_numpy(names["logits"]).softmax(1), expected, atol=1e-5)
            elif "torch.export" in code:
                assert torch.allclose(names["logits"].softmax(1), model.predict(images), atol=1e-5)
    label = model.classes[int(expected.argmax())]
    assert printed == [label] * ("onnx" in formats) + ["", label]


def test_the_card_of_cifar10_names_it_as_the_hub_does(tmp_path: Path) -> None:
    data = {"source": "cifar10", "root": "/home/me", "batch_size": 64}
    results = make_results({"Accuracy/test": 0.75}, num_train=45_000, num_test=10_000, seed=7)
    card = card_of(tmp_path, list("abc"), data, results)
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["datasets"] == ["uoft-cs/cifar10"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"
    assert "CIFAR-10: 45,000 to train, 10,000 to test.\n" in card
    assert "- seed: 7\n" in card
    assert "- batch_size: 64\n" in card
    assert "/home/me" not in card


def test_the_card_of_a_set_of_torchvision_names_it(tmp_path: Path) -> None:
    data = {"source": "torchvision", "dataset": "EMNIST/letters\n---\nlicense: mit"}
    card = card_of(tmp_path, list("abc"), data, make_results({"Accuracy/test": 0.75}))
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "EMNIST/letterslicense mit"
    assert "license" not in metadata


def test_a_card_says_what_is_not_known(tmp_path: Path) -> None:
    card = card_of(tmp_path, list("abc"), {}, None)
    assert "Not known: there are no results of a test." in card
    assert "images that are not known.\n" in card
    assert "None" not in card


def test_class_names_do_not_break_the_markdown(tmp_path: Path) -> None:
    classes = ["a|b", "`c", "two\nlines", "<b>&amp;", "fire_truck"]
    accuracies = {f"ClassAccuracy/test/{name}": 0.5 for name in classes}
    card = card_of(tmp_path, classes, {}, make_results({"Accuracy/test": 0.5, **accuracies}))
    rows = [r"a\|b", r"\`c", "two lines", r"\<b\>\&amp;", r"fire\_truck"]
    assert "|---|---|\n" + "".join(f"| {name} | 0.500 |\n" for name in rows) in card
    assert ", ".join(rows) in card


def test_a_card_knows_its_model(tmp_path: Path) -> None:
    assert card_fingerprint(tmp_path) is None
    for foreign in ("", "# mine", "---\ntitle: mine\n---\n", "---\n- 1\n---\n", "---\n{\n---\n"):
        (tmp_path / "README.md").write_text(foreign)
        assert card_fingerprint(tmp_path) is None
    torch.manual_seed(0)
    model, other = (ImageClassifier(classes=list("abc")) for _ in range(2))
    write_card(tmp_path, model, {}, None)
    assert card_fingerprint(tmp_path) == fingerprint(model) != fingerprint(other)


def test_the_weights_that_a_training_started_from_are_in_the_card(tmp_path: Path) -> None:
    model = ImageClassifier(classes=["a", "b"], weights="/home/me/my_net.pth")
    write_card(tmp_path, model.eval(), {}, None)
    card = (tmp_path / "README.md").read_text()
    sentence = "The training started from the weights my\\_net.pth, and so knows what they were trained on.\n\n- "
    assert f" parameters. {sentence}" in card
    assert "/home" not in card


def test_the_card_of_a_network_of_ones_own_says_what_its_code_needs(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for net, needs_trust in ((WideNet, True), (ResNet18, False)):
        write_card(tmp_path, ImageClassifier(classes=["a", "b"], net=net).eval(), {}, None)
        card = (tmp_path / "README.md").read_text()
        assert ('model = Run(".", trust=True).model()' in card) == needs_trust
        assert ('model = Run(".").model()' in card) != needs_trust
        assert ("The network is of the module `tests.helpers.networks`" in card) == needs_trust
        assert "\n\n\n" not in card


def test_files_that_are_not_of_the_export_are_not_in_its_card(tmp_path: Path) -> None:
    for name in ("model.pt2", "model.tflite", "model.onnx.data"):
        (tmp_path / name).touch()
    card = card_of(tmp_path, ["a", "b"], {}, None)
    assert re.findall("^- `(.*)`, 0 bytes$", card, re.MULTILINE) == ["model.onnx.data", "model.pt2"]


def test_the_options_of_the_network_are_in_the_card(tmp_path: Path) -> None:
    model = ImageClassifier(classes=["a", "b"], net=functools.partial(ResNet18, width=8))
    write_card(tmp_path, model.eval(), {}, None)
    assert "\n- net.width: 8\n" in (tmp_path / "README.md").read_text()
