"""Signs of life of a run's ranks, and the hosts that failed."""
