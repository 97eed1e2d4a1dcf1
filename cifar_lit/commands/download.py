"""``cifar-lit download``: download a dataset, and nothing else."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cifar_lit.cli.parser import CommandParser, naming_options
from cifar_lit.commands.options import given
from cifar_lit.data import SourceName
from cifar_lit.data.options import check_mirror
from cifar_lit.datamodule import CIFAR10DataModule

EXAMPLES = """
cifar-lit download
cifar-lit download --data.source cifar100 --data.root data
cifar-lit download --data.source torchvision --data.dataset FashionMNIST
"""


def main(args: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    source = vars(options).get("data.source", "cifar10")
    with naming_options(parser.names):
        check_mirror(vars(options).get("data.mirror"), source)
        if source in ("images", "synthetic"):
            print(f"--data.source {source} needs no download")
            return 0
        datamodule = CIFAR10DataModule(**given(options, "data"))
        datamodule.prepare_data()
    places = datamodule.hparams
    is_decoded = source == "torchvision"  # and the originals may be gone
    place = f"decoded in {Path(places['cache_dir']).expanduser()}" if is_decoded else f"in {places['root']}"
    print(f"{datamodule.source.title} is {place}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "download",
        "[--data.source NAME]",
        "Download a dataset, verify and extract it, and say from where and how fast. What is there is not downloaded "
        "again, and a download that was stopped resumes, but for torchvision's own, which begins again.",
        EXAMPLES,
    )
    default = argparse.SUPPRESS
    parser.add_argument("--data.source", default=default, choices=get_args(SourceName), help="which (default: cifar10)")
    parser.add_argument("--data.dataset", default=default, metavar="NAME", help="for torchvision, which dataset")
    parser.add_argument("--data.root", default=default, metavar="ROOT", help="the folder for it (default: data)")
    parser.add_argument("--data.mirror", default=default, metavar="URL", help="a URL of the archive, to try first")
    return parser
