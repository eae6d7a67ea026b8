"""How many threads a rank computes with where the configuration leaves it open."""

import pytest

from supersam.runtime.distributed import World, default_threads

BY_SRUN = {"SLURM_CPUS_PER_TASK": "4", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "world_size", "expected"),
    [
        ({}, 1, 16),
        ({"LOCAL_WORLD_SIZE": "3"}, 3, 5),
        ({"LOCAL_WORLD_SIZE": "32"}, 32, 1),
        ({"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "3"}, 3, 2),
        ({"OMP_NUM_THREADS": "3,1"}, 1, 3),
        ({"OMP_NUM_THREADS": ""}, 1, 16),
        ({"OMP_NUM_THREADS": "many"}, 1, 16),
        ({"SLURM_CPUS_PER_TASK": "8"}, 1, 8),
        ({"SLURM_CPUS_PER_TASK": "64"}, 1, 16),  # more than this process may use
        (BY_SRUN | {"LOCAL_WORLD_SIZE": "2"}, 2, 4),
        (BY_SRUN | {"SLURM_NTASKS": "1", "LOCAL_WORLD_SIZE": "2"}, 2, 2),  # ranks within one task
        (BY_SRUN | {"OMP_NUM_THREADS": "1"}, 2, 1),
    ],
)
def test_threads_follow_the_environment(environment, world_size, expected):
    world = World(rank=world_size - 1, world_size=world_size, local_rank=0, node=0)
    assert default_threads(world, environment, cores=16) == expected
