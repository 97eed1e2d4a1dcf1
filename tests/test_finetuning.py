"""Training that starts from weights: what is loaded, what is frozen, and that a run which resumes needs no file."""

import contextlib
import functools
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cifar_lit.checkpoint import save_safetensors
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.errors import UserError
from cifar_lit.finetuning import FineTuning, head_of, load_matching
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import FastCNN, TorchvisionNet, TutorialCNN
from cifar_lit.optim import Muon
from cifar_lit.run import Run
from tests.helpers.networks import WideNet
from tests.helpers.processes import at_step, script, state_of
from tests.helpers.runs import RUN, Refused, callback
from tests.helpers.trainers import quiet_trainer

NET = functools.partial(FastCNN, widths=[8, 16])
BEST = RUN / "checkpoints" / "best.ckpt"
FAST = ["--model.net", "FastCNN", "--model.net.widths", "[8,16]", "--data.batch_size", "12", "--no_report"]


@pytest.fixture
def data(tiny_root: Path) -> CIFAR10DataModule:
    return CIFAR10DataModule(source="images", root=str(tiny_root), val_size=15, batch_size=9)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file of the weights of a network for five classes, whose BatchNorm has seen images."""
    torch.manual_seed(1)
    net = FastCNN(5, widths=[8, 16])
    net.train()(torch.rand(20, 3, 32, 32))
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def model_of(num_classes: int = 3, **options: Any) -> ImageClassifier:
    torch.manual_seed(2)
    return ImageClassifier(classes=[f"class {i}" for i in range(num_classes)], net=NET, lr=0.1, **options)


class Bodies(Callback):
    """Remembers at the end of each epoch the body, what is trained, and in which mode."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Tensor]] = []
        self.num_trained: list[int] = []
        self.modes: list[bool] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        net: Any = pl_module.net
        self.bodies.append({name: part.clone() for name, part in net.state_dict().items() if name != "head.weight"})
        self.num_trained.append(sum(parameter.requires_grad for parameter in net.parameters()))
        self.modes.append(net.stages[0].norms[0].training)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(part, other[name]) for name, part in one.items())


@pytest.mark.parametrize("kind", ["state_dict", "module", "checkpoint", "safetensors"])
def test_what_fits_is_loaded_from_each_kind_of_file(kind: str, tmp_path: Path) -> None:
    source, model = model_of(5), model_of(3)
    with torch.no_grad():
        source.net.head.weight.fill_(9)  # type: ignore[union-attr,operator]
        source.net.stages[1].norms[0].bias.fill_(7)  # type: ignore[union-attr,index]
    path = tmp_path / "weights.pt"
    if kind == "safetensors":
        pytest.importorskip("safetensors")
        path = path.with_suffix(".safetensors")
        save_safetensors(path, source.hparams, source.state_dict())
    else:
        content = {"state_dict": source.net, "module": source, "checkpoint": source}[kind].state_dict()
        torch.save({"state_dict": content, "epoch": 3} if kind == "checkpoint" else content, path)
    before = model.net.head.weight.clone()  # type: ignore[union-attr,operator]
    text = load_matching(model, path)
    assert text == f"weights of {path}: 26 of 27 tensors, 99 % of the parameters; initialised: head.weight"
    assert torch.equal(model.net.head.weight, before)  # type: ignore[union-attr,arg-type]
    assert equal({k: v for k, v in source.net.state_dict().items() if k != "head.weight"}, model.net.state_dict())


@pytest.mark.parametrize(
    ("net", "prefix", "num_found"),
    [
        (functools.partial(TorchvisionNet, name="squeezenet1_0"), "", 50),  # torchvision's own file: ours has model.
        (functools.partial(TorchvisionNet, name="squeezenet1_0"), "module.", 50),
        (functools.partial(FastCNN, widths=[8, 16]), "module.", 26),  # of DistributedDataParallel
        (TutorialCNN, "_orig_mod.", 8),
    ],
)
def test_a_prefix_of_all_names_does_not_count(net: Any, prefix: str, num_found: int, tmp_path: Path) -> None:
    source, model = net(5), ImageClassifier(classes=["a", "b", "c"], net=net)
    inner = getattr(source, "model", source).state_dict()
    torch.save({prefix + name: part for name, part in inner.items()}, tmp_path / "weights.pt")
    assert f": {num_found} of {len(inner)} tensors, " in load_matching(model, tmp_path / "weights.pt")
    expected, now = source.state_dict(), model.net.state_dict()
    assert sum(torch.equal(part, expected[name]) for name, part in now.items() if part.shape == expected[name].shape)
    body = {name: part for name, part in now.items() if part.shape == expected[name].shape}
    assert len(body) == num_found
    assert equal(body, expected)


def test_the_line_says_what_differs(tmp_path: Path) -> None:
    torch.save(model_of(3, mean=(0.5, 0.5, 0.25)).state_dict(), tmp_path / "same.pt")
    assert load_matching(model_of(3), tmp_path / "same.pt").endswith(
        "same.pt: 27 of 27 tensors, 100 % of the parameters; their training had mean [0.5, 0.5, 0.25], and "
        "this one has [0.0, 0.0, 0.0]"
    )
    content = model_of(3).net.state_dict()
    torch.save({name: part for name, part in content.items() if "norms" not in name}, tmp_path / "part.pt")
    assert "; initialised: stages.stage1.norms.0.weight, stages.stage1.norms.0.bias" in load_matching(
        model_of(3), tmp_path / "part.pt"
    )
    assert load_matching(model_of(3), tmp_path / "part.pt").endswith(" and 17 more")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            TutorialCNN(10).state_dict(),
            "of another network (layers.conv1.weight, layers.conv1.bias, ...): 0 of 27 tensors, 0 % of",
        ),
        (FastCNN(3, widths=[8, 17]).state_dict(), "(whiten.weight, whiten.bias, ...): 16 of 27 tensors, 42 %"),
        (
            {**FastCNN(3, widths=[8, 16]).state_dict(), "head.weight": torch.full((3, 16), torch.nan)},
            "its head.weight ",
        ),
        ({"epoch": 3, "state_dict": [1, 2]}, "which has no weights: must hold tensors by name"),
        ([torch.ones(3)], "which has no weights: must hold tensors by name"),
        (nn.Linear(2, 2), "it holds more than plain values, which could run code"),
        ({"a": torch.ones(1).expand(1 << 40)}, "`weights`: a has the shape (1099511627776,)"),
    ],
)
def test_other_weights_are_refused(content: object, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    model = model_of()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    with pytest.raises(UserError, match="`weights`") as caught:
        load_matching(model, tmp_path / "weights.pt")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert equal(before, model.state_dict())


def test_a_value_that_the_network_itself_has_infinite_may_be_so(tmp_path: Path) -> None:
    class Masked(WideNet):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    model = model_of()
    model.net = Masked(3)
    torch.save(model.net.state_dict(), tmp_path / "weights.pt")
    assert "5 of 5 tensors" in load_matching(model, tmp_path / "weights.pt")


def test_a_frozen_body_stays_and_the_head_learns(data: CIFAR10DataModule, weights: Path) -> None:
    bodies, model = Bodies(), model_of(weights=str(weights), freeze="body", muon_lr=0.1, momentum=0.5)
    trainer = quiet_trainer(max_epochs=2, callbacks=bodies)
    trainer.fit(model, datamodule=data)
    expected = {name: part for name, part in torch.load(weights).items() if name != "head.weight"}
    assert equal(expected, bodies.bodies[0])  # the whitening and the statistics of BatchNorm, too
    assert equal(expected, bodies.bodies[1])
    assert (bodies.num_trained, bodies.modes) == ([1, 1], [False, False])
    assert not torch.equal(model.net.head.weight, model_of().net.head.weight)  # type: ignore[union-attr,arg-type]
    (optimizer,) = trainer.optimizers
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


def test_a_further_training_keeps_what_an_earlier_one_or_a_checkpoint_gave(
    data: CIFAR10DataModule, weights: Path
) -> None:
    model = model_of(weights=str(weights))
    quiet_trainer(max_epochs=1).fit(model, datamodule=data)
    weights.unlink()
    model.get_parameter("net.whiten.weight").data.fill_(0.5)
    quiet_trainer(max_epochs=1).fit(model, datamodule=data)
    assert (model.get_parameter("net.whiten.weight") == 0.5).all()
    loaded = model_of(weights=str(weights))
    loaded.on_load_checkpoint({"state_dict": model.state_dict()})
    quiet_trainer(max_epochs=1).fit(loaded, datamodule=data)


def test_what_would_stay_random_is_not_frozen(weights: Path) -> None:
    load_matching(model_of(3, weights=str(weights), freeze="body"), weights)  # all but the head
    name = "stages.stage1.norms.0.bias"
    torch.save({key: part for key, part in torch.load(weights).items() if key != name}, weights)
    with pytest.raises(UserError, match=rf"`freeze` is body, and `weights` .* has no {name} that fits"):
        load_matching(model_of(3, weights=str(weights), freeze="body"), weights)
    load_matching(model_of(3, weights=str(weights), freeze_epochs=1), weights)


def test_a_new_stem_is_not_frozen(data: CIFAR10DataModule) -> None:
    name = "squeezenet1_0"
    torch.save(TorchvisionNet(7, name=name).model.state_dict(), "start.pt")
    for small_stem in (False, True):
        net = functools.partial(TorchvisionNet, name=name, weights="start.pt", small_stem=small_stem)
        model = ImageClassifier(classes=data.classes, net=net, freeze="body")
        with (
            pytest.raises(UserError, match=r"no model\.features\.0\.weight") if small_stem else contextlib.nullcontext()
        ):
            quiet_trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=data)


@pytest.mark.parametrize(
    ("length", "is_enough"),
    [
        ({"max_epochs": 2}, False),
        ({"max_epochs": 3}, True),
        ({"max_steps": 10}, False),  # of 5 in an epoch
        ({"max_steps": 11}, True),
        ({"max_steps": 10, "num_training_batches": 4}, True),
        ({"max_steps": 6, "accumulate_grad_batches": 2}, False),
        ({"max_steps": 6, "num_training_batches": math.inf}, True),
        ({"max_epochs": 1, "max_steps": 1, "fast_dev_run": 1}, True),
        ({"max_epochs": None}, True),
    ],
    ids=str,
)
def test_a_training_must_be_longer_than_what_is_frozen(length: dict[str, Any], is_enough: bool, weights: Path) -> None:
    model = model_of(weights=str(weights), freeze_epochs=2)
    usual = {"max_epochs": -1, "max_steps": -1, "num_training_batches": 5, "accumulate_grad_batches": 1}
    others = {"fast_dev_run": False, "callbacks": [], "current_epoch": 0}
    model._trainer = SimpleNamespace(**{**usual, **others, **length})  # type: ignore[assignment]
    expected = r"`freeze_epochs` is 2: must be fewer than the training has \(`max_epochs`, `max_steps`\); `freeze` body"
    with contextlib.nullcontext() if is_enough else pytest.raises(UserError, match=expected):
        FineTuning.on_train_start(model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"weights": "/home/me/secret/net.pth"}, "net.pth"),
        ({"weights": "/home/me/lightning_logs/version_3/checkpoints/best.ckpt"}, "version_3/checkpoints/best.ckpt"),
        ({"net": functools.partial(TorchvisionNet, name="squeezenet1_0", weights="DEFAULT")}, "DEFAULT"),
        ({"net": functools.partial(TorchvisionNet, name="squeezenet1_0", weights="mine/start.pth")}, "start.pth"),
    ],
)
def test_the_name_of_the_weights_is_that_of_a_file_alone(options: dict[str, Any], expected: str | None) -> None:
    with torch.device("meta"):
        assert ImageClassifier(classes=["a", "b"], **options).started_from == expected


def test_a_body_is_frozen_for_some_epochs(
    data: CIFAR10DataModule, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bodies, model = Bodies(), model_of(weights=str(weights), freeze_epochs=1, muon_lr=0.1, momentum=0.5)
    trainer = quiet_trainer(max_epochs=2, callbacks=bodies)
    trainer.fit(model, datamodule=data)
    expected = {name: part for name, part in torch.load(weights).items() if name != "head.weight"}
    assert equal(expected, bodies.bodies[0])
    changed = {name for name, part in bodies.bodies[1].items() if not torch.equal(part, expected[name])}
    assert {name for name in expected if name not in changed} == {
        "whiten.weight",
        *(name for name in expected if "norms" in name and name.endswith(".weight")),
    }  # which FastCNN never trains
    assert bodies.modes == [False, True]
    assert "frozen until epoch 1 ends: all but head.weight\n" in caplog.text
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Muon)
    assert all("muon_buffer" in optimizer.state[parameter] for parameter in optimizer.param_groups[1]["params"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"freeze": "body"}, "`freeze` is body, and the body would have random weights: give `weights` to start from"),
        ({"freeze_epochs": 2}, "`freeze_epochs` is 2, and the body would have random weights"),
        ({"freeze_epochs": -1, "weights": "x"}, "`freeze_epochs` is -1: must be at least 0"),
        ({"freeze": "head", "weights": "x"}, "`freeze` is head: must be one of none, body"),
        ({"freeze": "body", "freeze_epochs": 1, "weights": "x"}, "`freeze_epochs` is 1: must be 0 beside a `freeze`"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        model_of(**options)
    assert expected in str(caught.value)


def test_the_head_is_the_last_layer_with_an_output_per_class() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(8, 4, 1))
            self.norm = nn.BatchNorm1d(4)

    own = Own()
    assert head_of(own, 4) is own.classifier[1]
    assert head_of(nn.Linear(3, 4), 4).out_features == 4
    with pytest.raises(UserError, match="Own has no linear layer with 5 outputs"):
        head_of(own, 5)


@pytest.mark.parametrize(
    "more",
    [pytest.param([], marks=pytest.mark.slow), callback("EMAWeightAveraging", decay=0.5)],
    ids=["plain", "averaged"],
)
def test_a_run_resumes_without_the_weights_and_thaws(
    more: list[str], tiny_args: list[str], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["fit", *tiny_args, *FAST, *more, "--model.muon_lr", "0.1", "--model.momentum", "0.5"]
    options += ["--model.weights", str(weights), "--model.freeze_epochs", "2"]
    assert main([*options, "--trainer.max_epochs", "3"]) == 0
    undisturbed = state_of()["state_dict"]
    shutil.rmtree("lightning_logs")
    with pytest.MonkeyPatch.context() as patch:  # within the epochs in which the body is frozen
        at_step(6, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main([*options, "--trainer.max_epochs", "3"]) == 143
    weights.write_text("no weights any more")
    assert caplog.text.count(f"weights of {weights}: 26 of 27 tensors") == 2
    caplog.clear()
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert state_of()["state_dict"] == undisturbed
    assert "weights of" not in caplog.text
    assert "frozen until epoch 2 ends: all but head.weight" in caplog.text
    weights.unlink()
    assert main(["test", str(RUN)]) == 0
    model = Run(RUN).model()
    assert model.hparams["weights"] == str(weights)
    short = quiet_trainer(max_epochs=3, limit_train_batches=1, limit_val_batches=0)
    short.fit(model.train(), datamodule=Run(RUN).datamodule())


def test_a_run_is_given_by_its_folder(run: str, tiny_args: list[str], caplog: pytest.LogCaptureFixture) -> None:
    short = ["--trainer.max_epochs", "1", "--data.batch_size", "48", "--no_report"]
    assert main(["fit", *tiny_args, *short, "--model.weights", str(RUN), "--model.freeze", "body"]) == 0
    assert f"weights of {BEST}: 10 of 10 tensors, 100 % of the parameters\n" in caplog.text
    assert "frozen: all but layers.linear2.weight, layers.linear2.bias\n" in caplog.text
    new = Run("lightning_logs/version_1")
    assert new.config["model"]["weights"] == new.model_options["weights"] == str(BEST)
    assert not new.model().is_new  # in Python, it trains on from its own


def test_weights_that_are_not_there_are_refused_before_the_data_is_read(refused: Refused) -> None:
    code, line = refused(["fit", "--data.root", "nowhere", "--model.weights", "gone"])
    assert (code, line) == (2, "error: --model.weights: gone: no such checkpoint")
    assert not Path("lightning_logs").exists()


def test_weights_of_another_network_leave_nothing_behind(weights: Path, tiny_args: list[str], refused: Refused) -> None:
    code, line = refused(["fit", *tiny_args, "--data.batch_size", "48", "--model.weights", str(weights)])
    assert code == 2
    assert (
        f"--model.weights is {weights}, of another network (whiten.weight, whiten.bias, ...): 0 of 10 tensors" in line
    )
    assert not list(Path("lightning_logs").glob("*"))


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("freezing", [["--model.freeze", "body"], ["--model.freeze_epochs", "1"]])
def test_two_processes_freeze_and_thaw_as_one_does(freezing: list[str], tiny_args: list[str]) -> None:
    torch.save(TutorialCNN(5).state_dict(), "weights.pt")
    options = [*tiny_args, "--model.weights", "weights.pt", *freezing, "--trainer.max_epochs", "2", "--no_report"]
    assert script([*options, "--data.batch_size", "8"]).code == 0
    two = [*options, "--data.batch_size", "4", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    if "1" in freezing:
        done = script([*two, "--trainer.strategy", "ddp"])
        assert done.code == 2
        assert "--trainer.strategy is DDPStrategy: must be ddp_find_unused_parameters_true, because" in done.err
    done = script([*two, "--trainer.strategy", "ddp" + "_find_unused_parameters_true" * ("1" in freezing)])
    assert done.code == 0, done.err
    files = sorted(Path("lightning_logs").glob("*/checkpoints/last.ckpt"))
    one, both = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    for name, part in one.items():
        assert torch.allclose(part, both[name], atol=1e-6), name
    name = "layers.conv1.weight"
    assert torch.equal(one[f"net.{name}"], torch.load("weights.pt")[name]) == ("body" in freezing)
