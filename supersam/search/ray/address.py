"""Where a Ray is and what its processes have in their environment. Imports no ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from supersam.config import UserError

OBJECT_STORE_BYTES = 128 << 20
"""Chunks and trials are kilobytes; every evaluator reads weights and images for itself."""
_MOST_LETTERS = 60
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    # Ray runs workers at niceness 15: beside other work they would get a thirtieth of a core.
    "RAY_worker_niceness": "0",
    # Ctrl-C is ours: Tune would drop the chunks under way.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own copies of the results, and its warnings that they take time.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for laptops: its servers then listen on 127.0.0.1 alone."""


@dataclass(frozen=True)
class RayAddress:
    """A Ray cluster that was started for one search."""

    address: str
    """host:port of its head."""
    tag: str
    """Name of a resource that only this cluster has."""
    token: str
    """The token that its servers ask of every client."""


FindRay = Callable[[], RayAddress]
"""Says where a search's Ray is now: a head that is started anew is elsewhere."""


def ray_environment(token: str, *, loopback: bool = False) -> dict[str, str]:
    """Variables of every process of a Ray that a search started."""
    return {**_ENVIRONMENT, **(_LOOPBACK if loopback else {}), "RAY_AUTH_TOKEN": token}


def require_short(folder: str) -> None:
    """Raise UserError where Ray's sockets below `folder` would have paths beyond 107 bytes."""
    if len(folder) > _MOST_LETTERS:
        raise UserError(f"{folder} is too long for Ray's sockets; set TMPDIR to a short local path")
