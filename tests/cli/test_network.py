"""A network of the user's on the command line: it is checked before anything starts, and its run can be read."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cifar_lit import Run
from cifar_lit.cli.network import check_network, import_named, own_code
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.networks.finding import FOLDER, NAMED, import_network
from tests.helpers.runs import RUN, Refused

CLASSES = ["a", "b", "c"]
MODULE = """\
from torch import nn
class MyModel(nn.Module):
    def __init__(self, num_classes=10, width=4, act=nn.ReLU()):
        super().__init__()
        self.conv, self.act, self.linear = nn.Conv2d(3, width, 3, stride=4), act, nn.Linear(64 * width, num_classes)
    def forward(self, x):
        x = self.act(self.conv(x))
        return self.linear(x.view(x.shape[0], -1))
class Failing(nn.Module):
    def __init__(self):
        super.__init__(Failing, self)
class Untyped(MyModel):
    def __init__(self, classes):
        super().__init__()
class Misspelt(nn.Module):
    def foward(self, x):
        return x
class NoReturn(MyModel):
    def forward(self, x):
        super().forward(x)
class Nine(MyModel):
    def __init__(self):
        super().__init__(9)
class Deep(MyModel):
    def __init__(self, depth, num_classes):
        super().__init__(num_classes, depth)
class Typed(MyModel):
    def __init__(self, depth: int):
        super().__init__()
"""


def forget() -> None:
    """Leave a process as it is before the first command."""
    FOLDER.names.clear()
    for name in [name for name in sys.modules if name.startswith("net_of_mine")]:
        NAMED.difference_update(value for value in vars(sys.modules.pop(name)).values() if isinstance(value, type))


@pytest.fixture(autouse=True)
def _module() -> Iterator[None]:
    Path("net_of_mine.py").write_text(MODULE)
    yield
    forget()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.dropout = nn.Conv2d(3, 2, 3, stride=4), nn.Linear(128, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(self.conv(x)).flatten(1))
        return logits


class OneChannel(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=4)


class Double(Base):
    def __init__(self) -> None:
        super().__init__()
        self.double()


class Flat(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3072, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(95, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.gru(x.view(len(x), 32, 96)))


class Auxiliary(Base):
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x), x) if self.training else super().forward(x)  # type: ignore[return-value]


class Frozen(Base):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Probabilities(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class LogProbabilities(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


class Misspelt(nn.Module):
    def foward(self, x: Tensor) -> Tensor:
        return x


class Masked(Base):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return x * mask


class Outside(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).reshape(3, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (
            OneChannel,
            "`net` is OneChannel: its layer conv expects 1 channels, and gets 3, from the image; cifar-lit expl",
        ),
        (Double, "its layer conv has weights of torch.float64, and the images are of torch.float32"),
        (Flat, "its layer 0 expects 3,072 features, and gets 3x32x32: flatten it before"),
        (Recurrent, "RuntimeError: .*Expected 95, got 96; the layer gru gets 32x96, from the image$"),
        (Outside, "RuntimeError: shape '.3, -1.' is invalid for input of size 256; conv gives 2x8x8$"),
        (Auxiliary, r"returns a tuple of \(2, 3\), \(2, 3, 32, 32\): must return"),
        (Frozen, "`net`: no parameter of Frozen is trained by its logits"),
        (Masked, "forward of Masked must take the images, and nothing else: missing a required argument: 'mask'"),
        (Misspelt, "Misspelt has no method forward; did you mean foward"),
    ],
)
def test_a_network_that_does_not_fit_is_said_in_terms_of_its_layers(net: type[nn.Module], expected: str) -> None:
    FOLDER.names.add("tests")  # as if it were a module of the working folder
    with pytest.raises(UserError, match=expected), own_code():
        check_network(ImageClassifier(classes=CLASSES, net=net), [])


def test_a_softmax_before_the_loss_is_noticed() -> None:
    FOLDER.names.add("tests")
    with pytest.warns(UserWarning, match="Probabilities gives probabilities, and the loss expects logits: leave out"):
        check_network(ImageClassifier(classes=CLASSES, net=Probabilities), [])
    check_network(ImageClassifier(classes=CLASSES, net=LogProbabilities), [])  # whose loss is the same


def test_the_check_leaves_the_network_and_the_random_numbers_as_they_were() -> None:
    model = ImageClassifier(classes=CLASSES, net=Base)
    model.net.conv.eval()  # type: ignore[union-attr]
    before, modes = torch.get_rng_state(), [part.training for part in model.net.modules()]
    check_network(model, [])
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.net.modules()] == modes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "MyModel",
            "there are ConvNet, .*; give one of your own with its module, as .*; did you mean net_of_mine.MyModel",
        ),
        ("FastNN", r"did you mean FastCNN\?$"),
        ("net_of_mine.py", "--model.net is net_of_mine.py: give the class in it, too, as net_of_mine.Typed"),
        ("net_of_mine", "give the class in it, too, as net_of_mine.Typed"),
        ("net_of_mine.MyModl", r"did you mean MyModel\?$"),
        (
            "net_of_mine:MyModel",
            "^--model.net is net_of_mine:MyModel: there are ConvNet, .*; give one of your own with its module, as "
            r"my_net\.MyNet$",
        ),
        ("MyModel(", r"--model.net is MyModel\(: there are"),
    ],
)
def test_a_name_that_is_not_found_is_answered(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        import_named([f"--model.net={name}"])


def test_a_configuration_with_options_of_the_network_alone_names_none() -> None:
    Path("step.yaml").write_text("model: {net: {init_args: {activation: relu}}}")
    import_named([], ["step.yaml"])
    assert not FOLDER.names


def test_a_network_is_named_by_an_option_or_a_configuration() -> None:
    Path("own.yaml").write_text("model: {net: {class_path: net_of_mine.MyModel}}")
    Path("part.yaml").write_text("model: {net: {init_args: {width: 3}}}")
    for args, configs in ((["--model.net", "net_of_mine.MyModel"], []), ([], ["part.yaml", "own.yaml", "none.yaml"])):
        import_named(args, configs)
        assert "net_of_mine" in sys.modules
        forget()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"import sys\nsys.exit('bye')",
            r"net_of_mine.py, line 2: it ends the process .*bye.*: put that below if __name",
        ),
        (
            MODULE.encode("utf-16"),
            r"net_of_mine \(save it as UTF-8\): \w+Error: source code string cannot contain null",
        ),
        (b"# coding: none", "net_of_mine.py, line 1: SyntaxError: unknown encoding: none"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(content: bytes, expected: str) -> None:
    Path("net_of_mine.py").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        import_named(["--model.net=net_of_mine.Net"])


def test_explain_takes_arguments_without_a_type() -> None:
    assert main(["explain", "--model.net", "net_of_mine.Deep", "--model.net.depth", "3"]) == 0


def test_options_that_do_not_fit_are_named_as_they_are_typed(refused: Refused) -> None:
    for args, expected in (
        (["net_of_mine.Typed"], "--model.net.depth has no default, and must be given"),
        (["net_of_mine.MyModel", "--model.net.widht", "3"], "no --model.net.widht; did you mean --model.net.width?"),
        (["net_of_mine.Failing"], "--model.net: net_of_mine.py, line 11, in __init__: TypeError: descriptor"),
        (["net_of_mine.Untyped"], "--model.net: Untyped has no default for classes: give --model.net.classes"),
    ):
        code, line = refused(["explain", "--model.net", *args])
        assert code == 2
        assert expected in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Misspelt", "--model.net: Misspelt has no method forward; did you mean foward?"),
        ("NoReturn", "--model.net: NoReturn gives NoneType for 2 images: must give (2, 10)"),
        ("Nine", "--model.net: Nine gives (2, 9) for 2 images: must give (2, 10), for 10 classes; let its constructor"),
    ],
)
def test_explain_names_a_slip_outside_of_the_layers(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--model.net", f"net_of_mine.{name}"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_a_network_of_the_users_is_read_resumed_and_explained(
    tiny_args: list[str], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--data.batch_size", "8", "--trainer.limit_train_batches", "2", "--no_report"]
    named = ["--model.net", "net_of_mine.MyModel"]
    options = [*tiny_args, *short, *named, "--model.net.width", "2"]
    assert main(["fit", *options, "--trainer.max_epochs", "1"]) == 0
    config = (RUN / "config.yaml").read_text()
    assert "width: 2" in config
    assert "act" not in config  # an object, and only a default
    resume = ["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "2"]
    forget()
    assert "Give --trust_run" in refused(resume)[1]
    assert "is of another package: give --trust_run" in refused(["test", str(RUN)])[1]
    assert main([*resume, *named]) == 0  # the user names it
    forget()
    assert main(["explain", str(RUN), "--trust_run"]) == 0
    forget()
    assert Run(RUN, trust=True).model().net.conv.out_channels == 2  # type: ignore[union-attr]
    assert "line" not in capsys.readouterr().err
    import_network("net_of_mine.MyModel")
