"""How many threads a rank computes with where the configuration leaves it open."""

import logging

import pytest
import torch

from supersam.runtime.distributed import World, default_threads, share_cores

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


@pytest.mark.parametrize(
    ("threads", "load", "is_told"), [(2, 1000.0, True), (2, 0.0, False), (1, 1000.0, False)]
)
def test_a_busy_machine_is_told_once_what_helps(monkeypatch, caplog, threads, load, is_told):
    logger = logging.getLogger("supersam.runtime.distributed")
    monkeypatch.setattr(logger, "propagate", False)  # to the same handler once more
    logger.addHandler(caplog.handler)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    try:
        share_cores(threads, World.single())
        share_cores(threads, World(rank=1, world_size=2, local_rank=1, node=0))
    finally:
        logger.removeHandler(caplog.handler)
        torch.set_num_threads(1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == is_told
    assert all(
        "load 1000 on " in text and "--threads 1 or OMP_NUM_THREADS=1" in text for text in said
    )
