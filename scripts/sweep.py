"""Search for settings: ``python scripts/sweep.py --set NAME=RANGE``."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback while PyTorch is imported

from cifar_lit.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
