"""A rank without torch, for tests of what surrounds ranks: it takes the place of cluster/rank.py.

It meets the others, gives signs of life, takes steps that need everybody, saves, obeys signals and
ends as a real rank does. Steps are taken while the test's gate is open: the file `gate` in the run
folder holds the step up to which they may go. No test waits for work to be long enough.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supersam.cluster.ranked_run import load_ranked_run
from supersam.cluster.rendezvous import join_step
from supersam.config.files import PROGRESS_FILE
from supersam.health.heartbeat import Heartbeat
from supersam.health.records import saved_step
from supersam.health.watchdog import Watchdog
from supersam.runtime.atomic import write_json
from supersam.runtime.signals import StopFlag, stop_requested

GATE = "gate"


class Group:
    """The ranks of a step, joined by sockets: a rank that is gone ends the others' waiting."""

    def __init__(self, rank: int, world_size: int, place: tuple[str, int]) -> None:
        self._rank, self._peers = rank, []
        if rank == 0:
            server = socket.create_server((place[0], place[1]))
            self._peers = [server.accept()[0] for _ in range(world_size - 1)]
        else:
            self._peers = [_connect(place)]

    def any(self, word: bytes) -> bytes:
        """The largest word of all ranks, once all have said one. Raises ConnectionError."""
        if self._rank > 0:
            self._peers[0].sendall(word)
            return _receive(self._peers[0])
        largest = max([word, *(_receive(peer) for peer in self._peers)])
        for peer in self._peers:
            peer.sendall(largest)
        return largest


def _connect(place: tuple[str, int]) -> socket.socket:
    while True:
        try:
            return socket.create_connection(place, timeout=None)
        except ConnectionRefusedError:  # rank 0 is about to listen
            time.sleep(0.1)


def _receive(peer: socket.socket) -> bytes:
    word = peer.recv(1)
    if not word:
        raise ConnectionError("another rank failed: connection closed")
    return word


def allowed_step(folder: Path) -> int:
    """The step up to which the test lets the ranks go."""
    try:
        return int((folder / GATE).read_text())
    except (FileNotFoundError, ValueError):
        return 0


@contextmanager
def _alive(folder: Path, run, rank: int, world_size: int) -> Iterator[Heartbeat]:
    nodes = int(os.environ["SLURM_NNODES"])
    place = {"rank": rank, "world_size": world_size, "nodes": nodes}
    config = run.watchdog
    with (
        Heartbeat(folder, **place, interval_s=config.heartbeat_s, steps=run.optim.steps) as heart,
        Watchdog(heart, config),
    ):
        yield heart


def main(folder: Path) -> int:
    os.chdir(os.environ["SLURM_SUBMIT_DIR"])
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s")
    run = load_ranked_run(folder)
    os.environ.update(join_step(folder, os.environ))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    print(f"rank {rank} on {os.uname().nodename}, code {Path(__file__).parents[2]}")
    with stop_requested() as stop, _alive(folder, run, rank, world_size) as heart:
        where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        step = _take_steps(folder, run, Group(rank, world_size, where), heart, stop)
        _save(folder, rank, step, heart)
        if stop and step < run.optim.steps:
            heart.enter("stopped")
            return 128 + stop.number
    return 0


def _take_steps(folder: Path, run, group: Group, heart: Heartbeat, stop: StopFlag) -> int:
    """Take steps until all are taken or one rank is told to stop. Returns the last one."""
    step = saved_step(folder)
    heart.begin(step)
    while step < run.optim.steps:
        if group.any(b"1" if stop else b"0") == b"1":
            stop.signal = stop.signal or signal.SIGUSR2
            break
        is_open = heart.rank == 0 and step < allowed_step(folder)  # one reads it: all do the same
        if group.any(b"1" if is_open else b"0") == b"0":
            heart.note_progress()
            time.sleep(0.1)
            continue
        step += 1
        heart.end_step(step)
        logging.info("step %d", step)
        if step % run.checkpoint.every_steps == 0:
            _save(folder, heart.rank, step, heart)
    return step


def _save(folder: Path, rank: int, step: int, heart: Heartbeat) -> None:
    if rank == 0:
        write_json(folder / PROGRESS_FILE, {"step": step})
        heart.saved(step)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
