"""Export a model: ``python scripts/export.py RUN_OR_CHECKPOINT --to FORMAT...``."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback while PyTorch is imported

from cifar_lit.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
