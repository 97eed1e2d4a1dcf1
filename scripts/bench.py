"""Measure how fast this machine trains: ``python scripts/bench.py --help``."""

from cifar_lit.bench.report import main

if __name__ == "__main__":
    main()
