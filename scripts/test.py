"""Score a run or a checkpoint: ``python scripts/test.py RUN_OR_CHECKPOINT``."""

import sys

from cifar_lit.cli import main

if __name__ == "__main__":
    main(["test", *sys.argv[1:]])
