"""Functions run as ranks of a small world.

A fork server that has imported torch and deepspeed once begins them: spawned, each would import
them for seconds; forked from the tests' own process, they could not run a backward pass once any
test there has run one in a thread (torch's autograd keeps threads that a fork loses).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from supersam.cluster.rendezvous import free_port
from tests.commands import server
from tests.patience import PATIENCE_S


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[int]:
    """Call `function(*args)` in `world_size` processes; returns their exit codes by rank.

    The environment of each names its place, as a launcher would. The function is one of a module,
    and what a test changed in its own process is not changed in theirs.
    """
    context = server()
    port = free_port("127.0.0.1")
    ranks = [
        context.Process(target=_as_rank, args=(rank, world_size, port, function, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE_S)
    for process in ranks:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _as_rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    place = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size,
        "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        function(*args)
    except BaseException:  # a rank never returns into the tests that forked it
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
