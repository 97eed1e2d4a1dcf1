"""``cifar-lit validate RUN``: score a run on validation only."""

from collections.abc import Sequence

from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.commands.options import OPTIONS, add_options
from cifar_lit.commands.test import score_run

EXAMPLES = "cifar-lit validate lightning_logs/version_0"
OF_TEST = ("model.tta", "trainer.limit_test_batches")


def _parser() -> CommandParser:
    parser = CommandParser("validate", "RUN", "Score a run or a checkpoint on validation.", EXAMPLES)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder (its best checkpoint) or a checkpoint")
    parser.add_trust()
    add_options(parser, (name for name in OPTIONS if name not in OF_TEST))
    parser.set_defaults(report=False)
    return parser


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if len(options.runs) > 1:
        parser.error("give one run; cifar-lit compare takes several")
    with naming_options(parser.names):
        score_run(options, splits=("val",))
    return 0
