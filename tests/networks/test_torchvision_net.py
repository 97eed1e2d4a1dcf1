"""torchvision's networks: heads, stems, sizes, and weights that only a new training loads."""

import ast
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import cifar_lit
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import TorchvisionNet, build_network, describe_network, torchvision_net
from cifar_lit.run import Run
from tests.helpers.runs import FEW_EPOCHS, RUN, Refused

SHUFFLE = "shufflenet_v2_x0_5"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of torch.hub's downloads, from which nothing is downloaded."""

    def refuse(url: str, *args: Any, **options: Any) -> None:
        raise OSError(f"asked for {url}")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@functools.cache
def imagenet() -> nn.Module:
    """Build a network as its weights of ImageNet have it: 1,000 classes."""
    net: nn.Module = models.get_model(SHUFFLE)
    return net


OTHERS = [
    *[("regnet_y_400mf", True), ("densenet121", True), ("swin_t", False), ("vit_b_16", False), ("googlenet", False)],
    *[("efficientnet_b0", True), ("convnext_tiny", False), ("mobilenet_v2", True), ("resnext50_32x4d", True)],
]


@pytest.mark.parametrize(
    ("name", "small_stem"),
    [
        *[("squeezenet1_1", True), ("mnasnet0_5", False), ("vgg11", False), ("alexnet", True)],
        *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS),
    ],
)
def test_a_network_gets_a_head_for_the_classes(name: str, small_stem: bool) -> None:
    with torch.device("meta"):
        spec = describe_network(functools.partial(TorchvisionNet, name=name, small_stem=small_stem))
        net = build_network(spec, num_classes=7).train()
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_regnet_takes_no_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        parts = TorchvisionNet(3, name="regnet_y_400mf").state_dict().values()
    assert {part.device.type for part in parts} == {"meta"}


def test_mnasnet_takes_weights_without_metadata() -> None:
    net, other = (TorchvisionNet(3, name="mnasnet0_5") for _ in range(2))
    copy.deepcopy(net).load_state_dict(dict(other.state_dict()))
    assert not torch.equal(net.get_parameter("model.layers.0.weight"), other.get_parameter("model.layers.0.weight"))
    net.load_state_dict(dict(other.state_dict()))
    assert torch.equal(net.get_parameter("model.layers.0.weight"), other.get_parameter("model.layers.0.weight"))


def test_a_small_stem_keeps_the_size_of_the_image() -> None:
    with torch.device("meta"):
        resnet: Any = TorchvisionNet(3, name="resnet18", small_stem=True).model
        mnasnet: Any = TorchvisionNet(3, name="mnasnet0_5", small_stem=True).model
    assert (resnet.conv1.weight.shape[2:], resnet.conv1.stride, type(resnet.maxpool)) == ((3, 3), (1, 1), nn.Identity)
    first = mnasnet.layers[0]
    assert (first.weight.shape[2:], first.stride) == ((3, 3), (1, 1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "resnet19"}, "is resnet19: must be one of torchvision's .* did you mean resnet18?"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "networks for classification, as resnet18"),
        ({"name": ["resnet18"]}, r"is \['resnet18'\]: must be one of"),
        (
            {"name": "vit_h_14"},
            "vit_h_14, for an `image_size` of 224, say, and not 32: Input shape indivisible",
        ),
        ({"name": "swin_t", "small_stem": True}, "swin_t does not begin with a strided convolution; leave it out"),
        ({"name": "vgg11", "small_stem": True}, "vgg11 does not begin with"),
        (
            {"weights": "IMAGENET1K_V3"},
            "weights is IMAGENET1K_V3: must be one of IMAGENET1K_V1, DEFAULT, or a",
        ),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected), torch.device("meta"):
        TorchvisionNet(10, **options)


def test_a_transformer_takes_the_size_that_it_was_built_for_alone() -> None:
    with torch.device("meta"):
        net = TorchvisionNet(5, 64, name="vit_b_32")
        for height, width in ((32, 32), (32, 64), (64, 32)):
            with pytest.raises(UserError, match="takes only images of its `image_size` 64"):
                net(torch.zeros(2, 3, height, width))


def test_weights_of_imagenet_are_loaded_but_for_the_head(hub: Path) -> None:
    net = TorchvisionNet(10, name=SHUFFLE, weights="DEFAULT")
    with pytest.raises(
        UserError, match=r"cannot be read \(OSError: asked for https://.*: download https://.* the file"
    ):
        net.load_weights()
    url = models.get_model_weights(SHUFFLE)["DEFAULT"].url
    torch.save(imagenet().state_dict(), hub / url.rpartition("/")[2])
    head = net.model.fc.weight.clone()  # type: ignore[union-attr,operator]
    assert net.load_weights() == "shufflenet_v2_x0_5: 336 of 338 tensors from DEFAULT; at random: fc.weight, fc.bias"
    assert torch.equal(net.model.conv5[0].weight, imagenet().conv5[0].weight)  # type: ignore[index,union-attr]
    assert torch.equal(net.model.fc.weight, head)  # type: ignore[union-attr,arg-type]


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    net = TorchvisionNet(10, name=SHUFFLE, weights=str(file))
    state: dict[Any, Tensor] = dict(imagenet().state_dict())
    for content, expected in (
        ({**state, "layer9.weight": torch.zeros(3)}, "not of shufflenet_v2_x0_5: layer9.weight differs"),
        ({name: part for name, part in state.items() if "conv5" not in name}, "conv5.0.weight differs"),
        ({**state, "conv1.0.weight": torch.zeros(2), "conv5.0.weight": torch.zeros(2)}, "conv1.0.weight differs"),
        ({"model": state}, "must hold a state_dict, names and tensors alone"),
        ({**state, "fc.bias": torch.full((1000,), torch.nan)}, "its fc.bias has non-finite values"),
        ({**state, 1: torch.zeros(2)}, "must hold a state_dict, names and tensors alone"),
        (imagenet(), r"cannot be read \(UnpicklingError"),  # a pickle, which could run code
    ):
        torch.save(content, file)
        with pytest.raises(UserError, match=expected):
            net.load_weights()
    file.unlink()
    with pytest.raises(UserError, match=r"No such file or directory.*: give another file"):
        net.load_weights()


def test_names_of_old_files_and_positions_of_other_sizes_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, num_classes: int, size: int, **_: Any) -> nn.Module:
        net: nn.Module = models.VisionTransformer(size, 16, 1, 1, 8, 8, num_classes=num_classes)
        return net

    monkeypatch.setattr(torchvision_net, "_build", build)
    torch.save(build("", 1000, 64).state_dict(), tmp_path / "vit.pt")
    net = TorchvisionNet(10, name="vit_b_16", weights=str(tmp_path / "vit.pt"))
    assert "at random: heads.head.weight, heads.head.bias" in net.load_weights()
    monkeypatch.setattr(torchvision_net, "_build", lambda *_, **__: models.DenseNet(4, (1, 1), 8, num_classes=10))
    net = TorchvisionNet(10, name="densenet121", weights=str(tmp_path / "dense.pt"))
    own = net.model.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): part for name, part in own.items()}
    torch.save(old, tmp_path / "dense.pt")
    assert "denselayer1.norm.1.weight" in str(old.keys())
    assert "at random" not in net.load_weights()
    monkeypatch.setattr(torchvision_net, "_build", lambda *_, **__: models.MobileNetV2(10, 0.1))
    net = TorchvisionNet(10, name="mobilenet_v2", weights=str(tmp_path / "mobile.pt"))
    torch.save(net.model.state_dict(), tmp_path / "mobile.pt")
    assert "features.1.conv.1.weight" in net.model.state_dict()  # which is no old name
    assert "at random" not in net.load_weights()


@pytest.mark.slow
def test_a_new_training_reads_the_weights_and_what_it_leaves_needs_them_no_more(
    tiny_args: list[str], tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model.net", "TorchvisionNet", "--model.net.name", SHUFFLE]
    given += ["--model.net.weights", "start.pt", "--model.lr", "1e-9"]
    code, line = refused(["fit", *tiny_args, *FEW_EPOCHS, *given])
    assert (code, "--model.net.weights is start.pt, which cannot be read" in line) == (2, True)
    assert not RUN.exists()
    torch.save(imagenet().state_dict(), "start.pt")
    assert main(["fit", *tiny_args, *FEW_EPOCHS, *given]) == 0
    Path("start.pt").unlink()
    run = Run(RUN)
    weight = run.model().net.get_parameter("model.conv5.0.weight")
    assert torch.allclose(weight, imagenet().get_parameter("conv5.0.weight"), atol=1e-6)
    assert main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "3"]) == 0  # resumes
    assert main(["explain", str(RUN)]) == 0
    assert "parameters" in capsys.readouterr().out
    code, line = refused(["fit", *tiny_args, "--model.net", "TorchvisionNet", "--model.net.name", "resnet19"])
    assert (code, "error: --model.net.name is resnet19: must be" in line) == (2, True)


def test_a_model_is_built_without_its_file() -> None:
    net = functools.partial(TorchvisionNet, name=SHUFFLE, weights="gone.pt")
    options = ImageClassifier(classes=["a", "b"], net=net).hparams["net"]["init_args"]
    assert options == {"name": SHUFFLE, "weights": "gone.pt"}


def test_torchvision_is_imported_inside_functions_alone() -> None:
    for path in Path(cifar_lit.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("torchvision") for name in names), path
