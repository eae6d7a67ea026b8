"""Where a run runs: this process or several local ones. Imports no torch."""

from supersam.cluster.launcher import submit

__all__ = ["submit"]
