"""``explain``: the layers of a network, or of a run's network."""

from pathlib import Path

import pytest
from torch import Tensor, nn

from cifar_lit.main import main
from cifar_lit.networks import Network
from tests.helpers.runs import RUN, Refused


def test_it_explains_the_tutorials_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("image 3 x 32 x 32\n\nlayers.conv1: Conv2d(3, 32, kernel_size=(5, 5)")
    assert "  multiplications 32*32*32*3*5*5 = 2,457,600\n" in out
    assert out.endswith("\n145,578 parameters, 12,354,176 multiplications per image\n")


def test_options_change_the_network_and_the_image(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.net", "FastCNN", "--model.net.widths", "[8, 16]", "--height", "16", "--num_classes", "3"]
    assert main(["explain", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("image 3 x 16 x 32\n")
    assert "3*16 = 48" in out


class Squeezing(Network):
    """Would take a batch of one image for the features of one."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.last = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(images.mean((2, 3)).squeeze())
        return logits


def test_a_network_is_explained_as_it_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--model.net", "tests.commands.test_explain.Squeezing"]) == 0
    out = capsys.readouterr().out
    assert "between the layers: 3 x 32 x 32 -> 3\n" in out
    assert out.endswith("  output          10\n\n40 parameters, 30 multiplications per image\n")


def test_a_layer_that_does_not_fit_ends_with_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--width", "24"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.endswith("expects 1,024 features, and gets 768: layers.flatten gives 768, from layers.pool3's 64x4x3")


def test_a_runs_network_is_explained(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["explain", str(RUN)]) == 0
    assert "layers.linear2: Linear(in_features=64, out_features=3, bias=True)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--height", "0"], "--height is 0: must be from 1 to 1024"),
        (["--width", "1000000"], "--width is 1000000: must be from 1 to 1024"),
        (["--num_classes", "-1"], "--num_classes is -1: must be from 1 to 100000"),
        (["--model.net", "FastCNN", "--model.net.depth", "3"], "depth"),
        (
            ["--model.net", "FastCNN", "--model.net.num_convs", "[1, 2]"],
            "--model.net.num_convs is [1, 2]: must be a whole number from 1 to 64, or a list with one for each of the "
            "3 --model.net.widths",
        ),
        (["--model.net", "FastCNN", "--model.net.widths", "[0]"], "--model.net.widths is [0]: must be one to five"),
        (["no/where"], "no/where"),
        (["FastCNN"], "FastCNN: no such run; a network is given as --model.net FastCNN"),
        (["my_net.MyModel"], "my_net.MyModel: no such run; a network is given as --model.net my_net.MyModel"),
        (["nowhere", "--num_classes", "3"], "--num_classes beside a run, which has its own classes"),
        (["nowhere", "--model.net", "FastCNN"], "--model.net beside a run, which has its own network"),
    ],
)
def test_bad_arguments_end_in_one_line(refused: Refused, args: list[str], message: str) -> None:
    code, line = refused(["explain", *args])
    assert code == 2
    assert message in line


def test_the_script_is_the_command() -> None:
    assert 'main(command="explain")' in Path(__file__).parents[2].joinpath("scripts/explain.py").read_text("utf-8")
