"""Choosing subnets for a budget. `supersam.search.session` runs a search."""

from supersam.config.files import JOURNAL_FILE
from supersam.search.journal import Journal, Trial, read_journal, trial_key
from supersam.search.pareto import hypervolume, pareto_front

__all__ = [
    "JOURNAL_FILE",
    "Journal",
    "Trial",
    "hypervolume",
    "pareto_front",
    "read_journal",
    "trial_key",
]
