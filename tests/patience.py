"""How long tests wait for what must come: no property, only an end where it never comes."""

PATIENCE_S = 600.0
"""On a machine with far more to do than it can. Less than pytest's own limit per test."""
