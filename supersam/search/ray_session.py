"""Joining a Ray: one of this process's own on loopback, or one that was started for this search.

Ray reads its environment when it is imported, so it is imported here and only inside a session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supersam.config import SearchRun, UserError

OBJECT_STORE_BYTES = 128 << 20
"""Chunks and trials are kilobytes; every evaluator reads weights and images for itself."""
MAX_FOLDER = 60
"""Letters of Ray's temporary folder: sockets below it have paths of up to 107 bytes."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_AUTH_MODE": "token",
    # Tune's own copies of the results, and its warnings that they take time.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for laptops: its servers then listen on 127.0.0.1 alone."""


@dataclass(frozen=True)
class RayAddress:
    """A Ray cluster that was started for this search."""

    address: str
    """host:port of its head."""
    tag: str
    """Name of a resource that only this cluster has."""
    token: str
    """What its servers want to hear from whoever speaks to them."""


def ray_environment(token: str, *, loopback: bool = False) -> dict[str, str]:
    """What every process of a Ray cluster of ours has in its environment."""
    return {**_ENVIRONMENT, **(_LOOPBACK if loopback else {}), "RAY_AUTH_TOKEN": token}


@contextlib.contextmanager
def local_ray(asked: SearchRun) -> Iterator[None]:
    """A Ray of this process's own, on loopback; nothing of it is left afterwards."""
    folder = tempfile.mkdtemp(prefix="ss-")
    require_short(folder)
    os.environ.update(ray_environment(secrets.token_hex(16), loopback=True))
    import ray

    cores = len(os.sched_getaffinity(0))
    try:
        with _beside_the_code():
            ray.init(
                address="local",
                num_cpus=max(cores, asked.cluster.evaluators_per_node or 1),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def joined_ray(cluster: RayAddress) -> Iterator[None]:
    """The Ray that was started for this search, and no other."""
    os.environ.update(ray_environment(cluster.token))
    import ray

    with _beside_the_code():
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if cluster.tag not in ray.cluster_resources():
            raise RuntimeError(f"the Ray at {cluster.address} is not this job's: no {cluster.tag}")
        yield
    finally:
        ray.shutdown()


def require_short(folder: str) -> None:
    """Raise UserError where Ray's sockets below `folder` would have too long a path."""
    if len(folder) > MAX_FOLDER:
        raise UserError(f"{folder} is too long for Ray's sockets; set TMPDIR to a short local path")


@contextlib.contextmanager
def _beside_the_code() -> Iterator[None]:
    """Within the block the working folder is where this package lies.

    Ray's workers look for modules in the folder that the driver joined from: it must be this code,
    whatever the user's working folder holds.
    """
    before = Path.cwd()
    os.chdir(Path(__file__).parents[2])
    try:
        yield
    finally:
        os.chdir(before)
