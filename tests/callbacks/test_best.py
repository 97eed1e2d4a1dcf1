"""The best checkpoint: chosen on validation, and remembered by a run that resumes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cifar_lit.callbacks.best import Best, Monitor
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.evaluation.report import read_curves
from cifar_lit.main import main
from tests.helpers.runs import RUN, Refused, read_results
from tests.helpers.trainers import Scripted, quiet_trainer


def fit(root: Path, best: Best, validations: Sequence[tuple[float, ...]]) -> None:
    """Train for an epoch per validation."""
    data = CIFAR10DataModule(source="images", root=str(root), val_size=12, batch_size=24)
    trainer = quiet_trainer(
        max_epochs=len(validations), callbacks=[best], enable_checkpointing=True, num_sanity_val_steps=0
    )
    trainer.fit(Scripted(classes=data.classes, validations=validations), datamodule=data)


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ([(0.5, 1.0), (0.7, 0.9), (0.6, 0.1)], 2),  # the accuracy counts, not the loss
        ([(0.7, 0.9), (0.7, 0.5), (0.7, 0.6)], 2),  # of several, the one with the lowest loss
        ([(0.7, 0.5), (0.7, 0.5), (0.1, 0.1)], 1),  # of equal ones the first
        ([(0.7, 0.9), (0.8, 1.5), (0.8, 1.2), (0.7, 0.1)], 3),
        ([(0.0, 2.0), (0.0, 1.0)], 2),
    ],
)
def test_the_best_epoch_is_kept(validations: list[tuple[float, float]], expected: int, tiny_root: Path) -> None:
    best = Best(Path("kept"))
    assert best.metrics == {}
    fit(tiny_root, best, validations)
    assert best.best_epoch == expected
    accuracy, loss = validations[expected - 1]
    assert best.metrics == pytest.approx({"Accuracy/val": accuracy, "Loss/val": loss})
    assert [path.name for path in Path("kept").iterdir()] == ["best.ckpt"]
    assert torch.load("kept/best.ckpt", weights_only=True)["epoch"] == expected - 1


@pytest.mark.parametrize(("monitor", "expected"), [("Loss/val", 2), ("MacroAccuracy/val", 3), ("Accuracy/val", 1)])
def test_what_is_best_can_be_chosen_and_is_remembered(monitor: Monitor, expected: int, tiny_root: Path) -> None:
    validations = [(0.9, 1.0, 0.3), (0.5, 0.2, 0.3), (0.6, 0.8, 0.5), (0.6, 0.9, 0.5)]
    best = Best(Path("kept"), monitor)
    fit(tiny_root, best, validations)
    names = ("Accuracy/val", "Loss/val", "MacroAccuracy/val")
    assert best.best_epoch == expected
    assert best.metrics == pytest.approx(dict(zip(names, validations[expected - 1], strict=True)))
    again = Best(Path("kept"), monitor)
    again.load_state_dict(best.state_dict())
    assert (again.metrics, again.best_epoch) == (best.metrics, expected)


def test_the_best_of_an_older_version_is_remembered(tiny_root: Path) -> None:
    best = Best(Path("kept"))
    fit(tiny_root, best, [(0.8, 0.4)])
    checkpoint = torch.load("kept/best.ckpt", weights_only=True)
    state = checkpoint["callbacks"][best.state_key]
    state["best_loss"] = state.pop("metrics")["Loss/val"]
    torch.save(checkpoint, "kept/best.ckpt")
    again = Best(Path("kept"))
    again.load_state_dict(state)
    assert again.metrics == pytest.approx({"Accuracy/val": 0.8, "Loss/val": 0.4})


def test_a_run_resumes_with_its_own_idea_of_the_best(run: str, refused: Refused) -> None:
    options = ["--ckpt_path", str(RUN), "--trainer.max_epochs", "3", "--checkpoint.monitor", "Loss/val"]
    code, line = refused(["fit", *options])
    assert code == 2
    assert "--checkpoint.monitor is Loss/val, and best.ckpt of" in line
    assert "is the best by Accuracy/val: leave it out" in line


def test_it_is_saved_at_the_end_of_the_epoch(tiny_root: Path) -> None:
    fit(tiny_root, Best(Path("kept")), [(0.5, 1.0)])
    loop = torch.load("kept/best.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loop["epoch_progress"]["current"]["processed"] == 1  # so that a run can resume from it


def test_without_validation_nothing_is_kept(tiny_root: Path) -> None:
    data = CIFAR10DataModule(source="images", root=str(tiny_root), val_size=12, batch_size=24)
    best = Best(Path("kept"))
    trainer = quiet_trainer(max_epochs=2, callbacks=[best], enable_checkpointing=True, check_val_every_n_epoch=5)
    trainer.fit(Scripted(classes=data.classes, validations=[(0.5, 1.0)]), datamodule=data)
    assert (best.metrics, best.best_epoch) == ({}, 0)
    assert not list(Path("kept").rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")  # as in a run that resumes
def test_a_run_that_resumes_in_a_moved_folder_remembers_its_best(tiny_root: Path) -> None:
    best = Best(Path("kept"))
    fit(tiny_root, best, [(0.8, 0.4), (0.7, 0.3)])
    Path("kept").rename("moved")
    again = Best(Path("moved"))
    again.load_state_dict(best.state_dict())
    assert again.best_epoch == 1
    assert again.metrics == best.metrics
    assert again.best_model_path == str(Path("moved/best.ckpt").absolute())
    fit(tiny_root, again, [(0.79, 0.1)])
    assert again.best_epoch == 1  # a worse epoch does not replace it
    assert torch.load("moved/best.ckpt", weights_only=True)["epoch"] == 0


def test_a_run_that_resumes_away_from_its_best_starts_anew(tiny_root: Path) -> None:
    best = Best(Path("kept"))
    fit(tiny_root, best, [(0.8, 0.4)])
    again = Best(Path("elsewhere"))
    again.load_state_dict(best.state_dict())
    assert again.metrics == {}
    fit(tiny_root, again, [(0.2, 1.0)])
    assert again.metrics == pytest.approx({"Accuracy/val": 0.2, "Loss/val": 1.0})
    assert Path("elsewhere/best.ckpt").is_file()


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")  # as in a run that resumes
@pytest.mark.parametrize("damage", [None, b"", b"PK\3\4"])
def test_a_run_that_resumes_from_before_its_best_keeps_it_unless_it_is_damaged(
    damage: bytes | None, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Best(Path("kept"))
    fit(tiny_root, before, [(0.6, 1.0)])
    state = before.state_dict()
    fit(tiny_root, before, [(0.1, 2.0), (0.8, 0.4)])  # best.ckpt is now that of a later epoch
    if damage is not None:
        Path("kept/best.ckpt").write_bytes(damage)
    capsys.readouterr()
    again = Best(Path("kept"))
    again.load_state_dict(state)
    best = {"Accuracy/val": 0.8, "Loss/val": 0.4} if damage is None else {}
    assert again.metrics == pytest.approx(best)
    assert ("best.ckpt is damaged" in capsys.readouterr().out) == (damage is not None)
    fit(tiny_root, again, [(0.2, 1.0)])  # worse than both, and what is kept is what is said
    assert again.metrics == pytest.approx(best or {"Accuracy/val": 0.2, "Loss/val": 1.0})
    saved = torch.load("kept/best.ckpt", weights_only=True)["callbacks"][again.state_key]
    assert saved["metrics"] == pytest.approx(again.metrics)


def test_a_fit_tests_the_best_epoch(tiny_args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.max_epochs", "12", "--data.batch_size", "8", "--model.lr", "0.03", "--no_report"]
    assert main(["fit", *tiny_args, *options]) == 0
    curves = read_curves(RUN)
    accuracies, losses = dict(curves["Accuracy/val"]), dict(curves["Loss/val"])
    equal = [epoch for epoch in accuracies if accuracies[epoch] == max(accuracies.values())]
    assert len(equal) > 1  # so that this tests something
    epoch = min(equal, key=lambda epoch: losses[epoch])
    assert epoch > equal[0]
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["epoch"] == epoch - 1
    results = read_results()
    assert results["best_epoch"] == epoch
    # Those of the training, to the last bit that TensorBoard keeps.
    assert results["Accuracy/val"] == pytest.approx(accuracies[epoch], rel=1e-6)
    assert results["Loss/val"] == pytest.approx(losses[epoch], rel=1e-6)
    assert f"best.ckpt, of epoch {epoch}\n" in capsys.readouterr().out
    # All images of all epochs, in the time outside validation, whichever epoch was tested.
    assert results["images_per_second"] * results["train_seconds"] >= 12 * 48


def test_nothing_is_removed_however_a_path_is_spelled(tiny_root: Path) -> None:
    Path("kept").mkdir()
    Path("link").symlink_to("kept")
    best = Best(Path("link"))
    fit(tiny_root, best, [(0.5, 0.4)])
    state = best.state_dict()
    for name in ("dirpath", "best_model_path", "kth_best_model_path"):
        state[name] = state[name].replace("kept", "./link")
    again = Best(Path("kept"))
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(tiny_root, again, [(0.6, 0.4), (0.7, 0.4)])
    assert again.metrics["Accuracy/val"] == pytest.approx(0.7)
    assert torch.load("kept/best.ckpt", weights_only=True)["epoch"] == 1
