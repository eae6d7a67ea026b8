"""The Slurm commands that the tests of `tests/cluster` stand in for or really run."""

from tests.cluster.conftest import slurm

__all__ = ["slurm"]
