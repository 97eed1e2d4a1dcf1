"""The card of an exported model: its use, data, training, metrics and limits, for people and the Hugging Face Hub."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_lit.evaluation import templates
from cifar_lit.files import write_atomic
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.base import needed_trust
from cifar_lit.results import Results

CARD, NEW_CARD, OLD_CARD = "README.md", "README.new.md", "README.old.md"
FILES = ("model.onnx", "model.onnx.data", "model.pt2", "model.safetensors", "config.json")
"""What an export may consist of; others in its folder are its owner's."""
MARK = "# written by cifar-lit export, sha256: "
"""The line with the digest of a card, by which one is known that was edited."""
HIDDEN = {"classes", "net", "root", "cache_dir", "mirror", "seed", "weights"}
"""Settings that are paths, or that stand elsewhere in the card."""


def write_card(folder: Path, model: ImageClassifier, data: Mapping[str, Any], results: Results | None) -> str:
    """Write the card of the files in a folder, and return its name, which is another one beside one that was edited.

    ``data`` are the data module's settings, empty if they are not known.
    """
    environment = templates(autoescape=False)  # Markdown: code samples must stay as they are
    environment.filters["plain"] = plain_markdown
    of_results = ("recipe", "seed", "epochs", "device", "precision", "versions")
    settings = {name: getattr(results, name, None) for name in of_results}
    settings |= {name: value for name, value in {**model.hparams, **data}.items() if name not in HIDDEN}
    of_net = model.hparams["net"]["init_args"].items()
    settings |= {f"net.{name}": value for name, value in of_net if name not in HIDDEN}
    card = environment.get_template("card.md.jinja").render(
        fingerprint=fingerprint(model),
        mark=MARK,
        classes=model.classes,
        size=model.image_size,
        resize=model.hparams["resize"],
        network=type(model.net).__name__,
        module=type(model.net).__module__ if needed_trust(model.net) else "",
        weights=model.started_from,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        files={name: (folder / name).stat().st_size for name in FILES[:-1] if (folder / name).is_file()},
        source=data.get("source"),
        dataset_name=re.sub(r"[^\w/ ]", "", data.get("dataset") or ""),
        settings={name: value for name, value in settings.items() if value not in (None, [])},
        results=results,
        metrics=results.metrics if results else {},
    )
    place = folder / (NEW_CARD if (folder / CARD).exists() and not _is_as_written(folder / CARD) else CARD)
    write_atomic(place, card.replace(MARK, MARK + _digest(card), 1))
    if place.name == CARD and _is_as_written(folder / NEW_CARD):
        (folder / NEW_CARD).unlink()
    return place.name


def set_aside(folder: Path) -> bool:
    """Give a card of an earlier version, of which nobody knows whether it was edited, another name, if that is free."""
    card = _read(folder / CARD)
    is_older = _find_fingerprint(card) is not None and MARK not in card and not (folder / OLD_CARD).exists()
    if is_older:
        (folder / CARD).replace(folder / OLD_CARD)
    return is_older


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_as_written(path: Path) -> bool:
    """Return whether a card is as ``write_card`` left it; those of older versions have no mark, and nobody knows."""
    card = _read(path)
    found = re.search(rf"^{re.escape(MARK)}(\w{{64}})$", card, re.MULTILINE)
    return found is not None and _digest(card.replace(found[0], MARK, 1)) == found[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return ""


def fingerprint(model: ImageClassifier) -> str:
    """Return the SHA-256 of a model's class names and weights."""
    total = hashlib.sha256("\n".join(model.classes).encode(errors="surrogatepass"))
    for weights in model.state_dict().values():
        total.update(weights.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


def card_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the model that a folder's files belong to; None if it has no card."""
    return _find_fingerprint(_read(folder / NEW_CARD) + _read(folder / CARD))  # of an edited one and a new one, the new


def _find_fingerprint(cards: str) -> str | None:
    found = re.search(r"^model_sha256: (\w{64})$", cards, re.MULTILINE)
    return found[1] if found else None


def plain_markdown(value: Any) -> str:
    """Return a value as text that Markdown shows as it is, on one line, also in a table."""
    if isinstance(value, Mapping):
        value = [f"{name} {part}" for name, part in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return re.sub(r"([\\`*_~|&<>\[\]])", r"\\\1", " ".join(str(value).split()))
