"""Where a run runs: this process or several local ones. Imports no torch."""

from supersam.cluster.executor import submit

__all__ = ["submit"]
