"""Predict: ``python scripts/predict.py RUN_OR_CHECKPOINT PATH...``."""

import sys

from cifar_lit.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
