"""Joining a Ray: one of this process's own on loopback, or one that was started for this search.

Ray reads its environment when it is imported, so it is imported here and only inside a session.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from supersam.config import SearchRun, UserError
from supersam.runtime.signals import STOP_SIGNALS
from supersam.runtime.waiting import wait_until
from supersam.search.ray.address import FindRay, RayAddress, ray_environment
from supersam.search.ray.local import REMEDY, read_address, started_ray

logger = logging.getLogger(__name__)

_NODES_S = 240.0
"""Seconds for all hosts to join."""
_ANSWER_S = 180.0
"""Seconds for the head to answer: one that starts anew on a slow host is found elsewhere."""
_RETRY_S = 1.0
_IN_JOB = "see logs/ray-*.log in the search's folder; the same command goes on"


@functools.cache
def _token() -> str:
    """The token that the servers of this process's own Ray ask for; Ray reads it once."""
    return secrets.token_hex(16)


@contextlib.contextmanager
def local_ray(search: SearchRun) -> Iterator[None]:
    """A Ray of this search's own, on loopback; nothing of it is left afterwards."""
    os.environ.update(ray_environment(_token(), loopback=True))
    cpus = max(len(os.sched_getaffinity(0)), search.cluster.evaluators_per_node or 1)
    with started_ray(cpus, _token()) as process, _joined(partial(read_address, process), REMEDY):
        yield


@contextlib.contextmanager
def joined_ray(find: FindRay, *, nodes: tuple[int, int]) -> Iterator[None]:
    """The Ray that was started for this search, and no other.

    Waits for the most of `nodes` hosts; after a while the fewest are enough.
    """
    os.environ.update(ray_environment(find().token))
    with _joined(lambda: find().address, _IN_JOB, patience_s=_ANSWER_S):
        _wait_for_nodes(find(), nodes)
        yield


@contextlib.contextmanager
def _joined(address: Callable[[], str], remedy: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Raises UserError, with the remedy, where Ray does not answer.

    address: asked once Ray is imported, which takes as long as a Ray's start, and again before
    each further attempt; none begins after `patience_s`.
    """
    import ray

    deadline = time.monotonic() + patience_s
    with _joining():
        while not ray.is_initialized():
            where = address()
            try:
                ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ray.exceptions.RayError) as fault:  # it has no one kind
                text = f"the search's Ray at {where} does not answer ({fault})"
                if time.monotonic() >= deadline:
                    raise UserError(f"{text}; {remedy}") from fault
                logger.warning("%s; trying again", text)
                time.sleep(_RETRY_S)
    try:
        yield
    finally:
        ray.shutdown()


def _wait_for_nodes(cluster: RayAddress, nodes: tuple[int, int]) -> None:
    import ray

    fewest, most = nodes
    here = 0

    def have_joined() -> bool:
        nonlocal here
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        here = len(alive)
        if not all(cluster.tag in resources for resources in alive):
            raise UserError(
                f"the Ray at {cluster.address} is not this job's: no {cluster.tag}; {_IN_JOB}"
            )
        return here >= most

    if wait_until(have_joined, timeout_s=_NODES_S, poll_s=0.1):
        return
    if here < fewest:
        raise UserError(
            f"{here} of {most} hosts joined within {_NODES_S:g} s; leave the silent ones out with "
            f"--exclude, or allow fewer with --min-nodes; {_IN_JOB}"
        )
    logger.warning("going on with %d of %d hosts", here, most)


@contextlib.contextmanager
def _joining() -> Iterator[None]:
    """Within the block the working folder is where this package lies; signals are ours after it.

    Ray's workers look for modules in the folder that the driver joined from: it must be this code,
    whatever the user's working folder holds. And Ray would end this process on the first TERM.
    """
    before = Path.cwd()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    os.chdir(Path(__file__).parents[3])
    try:
        yield
    finally:
        os.chdir(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
