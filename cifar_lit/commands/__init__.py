"""Commands: one file per verb, each a consumer of a run."""
