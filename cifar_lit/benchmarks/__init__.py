"""How fast this machine trains; ``python scripts/bench.py`` runs it."""
