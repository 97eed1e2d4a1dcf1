"""``cifar-lit explain``: what each layer of a network does to an image, with the formulas filled in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from cifar_lit.cli.network import check_forward, import_named, own_code
from cifar_lit.cli.parser import TRUST_HELP, FitParser, naming_options, reader_may_leave
from cifar_lit.cli.words import option_names
from cifar_lit.errors import UserError, require
from cifar_lit.evaluation.layers import explain_layers, format_layers
from cifar_lit.networks import (
    NetworkFactory,
    TutorialCNN,
    build_network,
    check_logits,
    describe_network,
    evaluation_mode,
)
from cifar_lit.run import Run

MAX_SIZE, MAX_CLASSES = 1024, 100_000
EXAMPLES = """\
examples:
  cifar-lit explain
  cifar-lit explain --model.net FastCNN --model.net.widths '[32, 64]'
  cifar-lit explain --model.net my_net.MyNet --height 48 --width 64
  cifar-lit explain lightning_logs/version_0
"""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    names = {**option_names(parser._option_string_actions), "trust": "--trust_run"}
    with naming_options(names):
        import_named(args)
    options = parser.parse_args(list(args))
    with naming_options(names), reader_may_leave(), own_code():
        for name in ("height", "width"):
            given = options[name]
            require(name, given, given is None or 1 <= given <= MAX_SIZE, f"from 1 to {MAX_SIZE}")
        if options["run"] is not None and options["num_classes"] is not None:
            raise UserError("`num_classes` beside a run, which has its own classes: leave out one of them")
        num_classes = 10 if options["num_classes"] is None else options["num_classes"]
        require("num_classes", num_classes, 1 <= num_classes <= MAX_CLASSES, f"from 1 to {MAX_CLASSES}")
        given = options.get("model.net.init_args")
        names.update({name: f"--model.net.{name}" for name in (given.keys() if given else ()) if name not in names})
        net = _network(options, parser.instantiate_classes(options)["model"]["net"], num_classes)
        check_forward(net)
        shape = (3, options["height"], options["width"])
        layers = explain_layers(net, torch.zeros(2, *shape))  # 2, since 1 may be squeezed
        print(format_layers(layers, shape, sum(parameter.numel() for parameter in net.parameters())))
        if layers and layers[-1].problem:
            return 1
        if options["run"] is None:  # the layers fit; is what the network returns one logit for each class?
            with torch.no_grad(), evaluation_mode(net):
                check_logits(net(torch.zeros(2, *shape)), net, 2, num_classes)
    return 0


def _parser() -> FitParser:
    parser = FitParser(
        usage="cifar-lit explain [RUN] [options]",
        description="Show for each layer of a network its output size with the formula filled in, its parameters and "
        "its multiplications. Of a layer that does not fit, show why.",
        epilog=EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run or a checkpoint, whose network is explained")
    parser.add_argument("--trust_run", action="store_true", help=TRUST_HELP)
    net: Any = parser.add_argument(
        "--model.net", type=NetworkFactory, default=None, help="The network, as for fit (default: TutorialCNN)."
    )
    net.sub_add_kwargs = {"fail_untyped": False}  # as those of fit, of which an argument without a type is an option
    parser.add_argument("--height", type=int | None, help="Height of the image in pixels (default: the run's, or 32).")
    parser.add_argument("--width", type=int | None, help="Width of the image in pixels (default: the run's, or 32).")
    parser.add_argument("--num_classes", type=int | None, help="Classes of the data (default: the run's, or 10).")
    return parser


def _network(options: Namespace, net: NetworkFactory | None, num_classes: int) -> nn.Module:
    """Return the network; the image is of its size where no other is given."""
    size = 32
    if options["run"] is None:
        if options["height"] == options["width"] and options["height"]:
            size = options["height"]
        network = build_network(describe_network(net or TutorialCNN), num_classes=num_classes, image_size=size)
    elif net is not None:
        raise UserError("`net` beside a run, which has its own network: leave out one of them")
    elif options["run"].replace(".", "").isidentifier() and not Path(options["run"]).exists():
        raise UserError(f"{options['run']}: no such run; a network is given as `net` {options['run']}")
    else:
        model = Run(options["run"], trust=options["trust_run"]).model()
        network, size = model.net, model.image_size
    for name in ("height", "width"):
        options[name] = size if options[name] is None else options[name]
    return network
