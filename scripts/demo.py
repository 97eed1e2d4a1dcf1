"""Look at pictures in the browser: ``python scripts/demo.py RUN_OR_CHECKPOINT``."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback while PyTorch is imported

from cifar_lit.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
