"""``python -m cifar_lit`` is ``cifar-lit``."""

from cifar_lit.main import main

if __name__ == "__main__":
    raise SystemExit(main())
