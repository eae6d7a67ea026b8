"""Choosing subnets for a budget."""

from supersam.search.command import SearchResult, run_search
from supersam.search.journal import JOURNAL, Journal, Trial, read_journal, trial_key
from supersam.search.pareto import hypervolume, pareto_front

__all__ = [
    "JOURNAL",
    "Journal",
    "SearchResult",
    "Trial",
    "hypervolume",
    "pareto_front",
    "read_journal",
    "run_search",
    "trial_key",
]
