"""Choosing subnets for a budget. `supersam.search.session` runs a search."""

from supersam.search.journal import Journal, Trial, read_journal, trial_key
from supersam.search.pareto import hypervolume, pareto_front

__all__ = [
    "Journal",
    "Trial",
    "hypervolume",
    "pareto_front",
    "read_journal",
    "trial_key",
]
