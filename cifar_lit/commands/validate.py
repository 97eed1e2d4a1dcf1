"""``cifar-lit validate RUN``: score a run on validation only."""

from collections.abc import Sequence

from cifar_lit.cli.parser import naming_options
from cifar_lit.commands.test import make_parser, score_run

EXAMPLES = "cifar-lit validate lightning_logs/version_0"


def main(args: Sequence[str]) -> int:
    parser = make_parser("validate", "RUN", "Score a run or a checkpoint on validation.", EXAMPLES)
    options = parser.parse_args(args)
    if len(options.runs) > 1:
        parser.error("give one run; cifar-lit compare takes several")
    with naming_options(parser.names):
        score_run(options, splits=("val",))
    return 0
