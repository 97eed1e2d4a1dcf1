"""The card of an exported model: what it was trained on, how well it does, where it must not be trusted."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cifar_lit.module import ImageClassifier

USES = {
    "model.safetensors": """
With cifar_lit, which resizes pictures of any size as those of the training were:

```python
from cifar_lit.module import ImageClassifier
from PIL import Image

model = ImageClassifier.from_run(".")
probabilities = model.predict([Image.open("picture.jpg")])
print(model.classes[probabilities[0].argmax()])
```
""",
    "model.onnx": """
With onnxruntime:

```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGBA")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
picture = picture.resize((32, 32), Image.Resampling.BILINEAR)
images = np.asarray(picture).transpose(2, 0, 1)[None]
if session.get_inputs()[0].type == "tensor(float)":
    images = images.astype(np.float32) / 255
(logits,) = session.run(["logits"], {"images": images})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(classes[logits[0].argmax()])
```
""",
    "model.pt2": """
With PyTorch alone, for images of the type that it was exported for:

```python
import json

import torch

files = {"classes.json": ""}
network = torch.export.load("model.pt2", extra_files=files).module()
classes = json.loads(files["classes.json"])
logits = network(images)
```
""",
}
"""How each file is used, from the folder that it lies in."""


def fingerprint(model: ImageClassifier) -> str:
    """Sum up a model's weights and the names of its classes.

    Args:
        model: The model.

    Returns:
        A SHA-256 sum, in hexadecimal digits.
    """
    total = hashlib.sha256("\n".join(model.classes).encode())
    for weights in model.state_dict().values():
        total.update(weights.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


def card_fingerprint(folder: Path) -> str | None:
    """Tell which model the files of a folder are of.

    Args:
        folder: The folder.

    Returns:
        What ``fingerprint`` gave; None where there is no card of ours.
    """
    try:
        head = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
        return str(head["model_sha256"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None


def write_card(folder: Path, model: ImageClassifier, data: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write ``README.md``, in Markdown, headed by the metadata that the Hugging Face Hub reads.

    Args:
        folder: Where the exported files lie.
        model: The model.
        data: The hyper-parameters of its data; empty where they are not known.
        results: What is known of its run; empty where nothing is.
    """
    files = [path for path in sorted(folder.glob("model.*")) if path.name in USES]
    # The name of the user's own folder is nobody's business.
    dataset = {"cifar10": "CIFAR-10", "synthetic": "pictures drawn by code"}.get(data.get("source", ""), "own pictures")
    title = f"{type(model.net).__name__} on {dataset}"
    sections = {
        "Use": _describe_use(files),
        "Files": "\n".join(f"- `{path.name}`, {path.stat().st_size:,} bytes" for path in files)
        + "\n\nEach was held against the model before it was kept: the same labels for 1,000 images, and the same "
        "logits up to rounding.",
        "Classes": ", ".join(model.classes),
        "Data": _describe_data(dataset, results),
        "Training": _describe_training(model, data, results),
        "Figures": _describe_figures(model, results),
        "Limits": _describe_limits(model, data),
    }
    body = "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())
    intro = f"An image classifier for {len(model.classes)} classes, trained with cifar_lit."
    metadata = _metadata(title, dataset, data, results) | {"model_sha256": fingerprint(model)}
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    part = folder / ".README.md.part"
    part.write_text(f"---\n{head}---\n\n# {title}\n\n{intro}\n{body}", encoding="utf-8")
    part.replace(folder / "README.md")


def _metadata(title: str, dataset: str, data: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the Hub's specification of model cards asks for; no licence, which is for the owner to choose."""
    metadata: dict[str, Any] = {
        "library_name": "cifar_lit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", "lightning"],
    }
    kind = dataset.lower().replace(" ", "-")
    if data.get("source") == "cifar10":
        kind = "uoft-cs/cifar10"
        metadata["datasets"] = [kind]
    metadata["metrics"] = ["accuracy"]
    if "Accuracy/test" in results:
        result = {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"name": dataset, "type": kind, "split": "test"},
            "metrics": [{"type": "accuracy", "value": round(results["Accuracy/test"], 4), "name": "accuracy"}],
        }
        metadata["model-index"] = [{"name": title, "results": [result]}]
    return metadata


def _describe_use(files: list[Path]) -> str:
    text = (
        "It takes any number of RGB pictures of 32x32 pixels, `(N, 3, 32, 32)`, and gives a logit for each class, "
        "`(N, classes)`. The normalisation is inside: bytes are given as they are, floats in [0, 1]. Pictures are "
        "turned upright as their EXIF data says, put on white where they are transparent, and resized without keeping "
        "the proportion of their sides. From the folder of this card:\n"
    )
    return text + "".join(USES[path.name] for path in files).rstrip()


def _describe_data(dataset: str, results: Mapping[str, Any]) -> str:
    if "num_train" not in results:
        return f"{dataset}."
    sizes = ", ".join(
        f"{results[key]:,} to {what}"
        for key, what in (("num_train", "train"), ("num_val", "choose the checkpoint"), ("num_test", "test"))
        if results[key]
    )
    return f"{dataset}: images {sizes}."


def _describe_training(model: ImageClassifier, data: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"`{type(model.net).__name__}`, {num_parameters:,} parameters."]
    if results:
        run = {name: results[name] for name in ("recipe", "seed", "epochs", "device", "versions") if name in results}
        lines.append("\n".join(f"- {name}: {_plain(value)}" for name, value in run.items()))
    options = {name: value for name, value in model.hparams.items() if name not in ("classes", "net")}
    options |= {name: value for name, value in data.items() if name not in ("root", "cache_dir", "mirror", "seed")}
    lines.append("\n".join(f"- {name}: {_plain(value)}" for name, value in options.items() if value != []))
    return "\n\n".join(lines)


def _describe_figures(model: ImageClassifier, results: Mapping[str, Any]) -> str:
    if "Accuracy/test" not in results:
        return "Not known: there was no run beside the checkpoint."
    low, high = results.get("AccuracyInterval/test", (None, None))
    interval = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
    lines = [f"Accuracy on test, of one run: {results['Accuracy/test']:.4f}{interval}."]
    if results.get("CalibrationError/test") is not None:
        lines.append(f"Expected calibration error: {results['CalibrationError/test']:.4f}.")
    rows = [(name, results.get(f"ClassAccuracy/test/{name}")) for name in model.classes]
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in rows if value is not None)
    return " ".join(lines) + f"\n\n| class | accuracy on test |\n|---|---|\n{table}"


def _describe_limits(model: ImageClassifier, data: Mapping[str, Any]) -> str:
    lines = [
        f"- It knows {len(model.classes)} classes and always names one of them, also for a picture of something else.",
        "- It sees 32x32 pixels: what cannot be told apart at that size, it does not tell apart.",
        "- Its probabilities are not calibrated, and it was not tested on pictures from elsewhere, on changed or "
        "disturbed ones, or for fairness.",
    ]
    if data.get("source") == "cifar10":
        lines.append("- CIFAR-10 shows its objects large and in the middle.")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
