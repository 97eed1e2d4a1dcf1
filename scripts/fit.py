"""Train a classifier: ``python scripts/fit.py --help``."""

import sys

from cifar_lit.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
