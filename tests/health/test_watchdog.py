"""A hanging attempt ends by itself, within its limit, and the rank at fault is named."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from supersam.config import WatchdogConfig
from supersam.health.bad_hosts import count_host_hangs
from supersam.health.heartbeat import Heartbeat
from supersam.health.records import RankHeartbeat, read_heartbeats
from supersam.health.watchdog import STALLED, HangReport, Watchdog, find_hung_rank, read_hang_report
from tests.patience import PATIENCE_S

STALL_S = 5.0  # no rank that can run is kept waiting for so long
# Ranks that meet at every step, as those of a training run do, without the weight of torch.
RANK = f"""\
import sys, time
from pathlib import Path
from supersam.config import WatchdogConfig
from supersam.health.heartbeat import Heartbeat
from supersam.health.watchdog import Watchdog

folder, rank, world_size, hang_at = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = WatchdogConfig(heartbeat_s=0.1, stall_s={STALL_S}, other_s=30)
place = dict(rank=rank, world_size=world_size, nodes=1)
heartbeat = Heartbeat(folder, **place, interval_s=0.1, steps=10**6)
meeting = folder / "meeting"
meeting.mkdir(exist_ok=True)
with heartbeat, Watchdog(heartbeat, config):
    step = 0
    while not (folder / "enough").exists():
        heartbeat.note_progress()
        if rank == world_size - 1 and step == hang_at:
            time.sleep(3600)
        (meeting / f"{{step}}-{{rank}}").touch()
        heartbeat.note_progress()
        while not all((meeting / f"{{step}}-{{r}}").exists() for r in range(world_size)):
            time.sleep(0.01)
        time.sleep(0.02)
        step += 1
        heartbeat.end_step(step)
"""


class Ranks:
    """Two processes of one job."""

    def __init__(self, folder: Path, hang_at: int = -1) -> None:
        arguments = [[str(folder), str(rank), "2", str(hang_at)] for rank in range(2)]
        self.folder = folder
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, *words], stderr=subprocess.PIPE, text=True
            )
            for words in arguments
        ]

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while [b.step >= step for b in read_heartbeats(self.folder)] != [True, True]:
            assert time.monotonic() < deadline, "the ranks never got there"
            time.sleep(0.05)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder; the runs beside it share its strikes."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def ranks(folder: Path):
    started: list[Ranks] = []

    def start(**options: int) -> Ranks:
        started.append(Ranks(folder, **options))
        return started[0]

    yield start
    for job in started:
        job.end()


def test_a_stopped_rank_is_named_by_the_one_that_waits_for_it(ranks, folder: Path) -> None:
    job = ranks()
    job.wait_for_step(5)
    job.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert job.processes[0].wait(timeout=PATIENCE_S) == STALLED
    assert time.monotonic() - began > STALL_S
    found = read_hang_report(folder)
    host = socket.gethostname()
    assert found is not None
    assert (found.rank, found.host) == (1, host)
    assert "is stopped" in found.reason
    assert count_host_hangs(folder) == {host: 1}
    stacks = (folder / "logs" / "stacks-00000.txt").read_text(encoding="utf-8")
    assert "rank 0 on" in stacks
    assert stacks.count("Thread 0x") + stacks.count("Current thread") >= 3
    assert {b.rank: b.phase for b in read_heartbeats(folder)} == {0: "stuck", 1: "training"}


def test_a_rank_that_hangs_with_a_beating_heart_is_named_and_dumps_its_stack(
    ranks, folder: Path
) -> None:
    job = ranks(hang_at=5)
    assert [p.wait(timeout=PATIENCE_S) for p in job.processes] == [STALLED, STALLED]
    found = read_hang_report(folder)
    assert found is not None
    assert found.rank == 1
    assert "hangs after step 5 (training); 1 of 2 ranks wait for it" in found.reason
    stacks = (folder / "logs" / "stacks-00001.txt").read_text(encoding="utf-8")
    assert '"<string>", line' in stacks


def test_a_suspended_and_resumed_job_goes_on(ranks, folder: Path) -> None:
    job = ranks()
    job.wait_for_step(5)
    for process in job.processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(2 * STALL_S)
    step = max(beat.step for beat in read_heartbeats(folder))
    for process in job.processes:
        process.send_signal(signal.SIGCONT)
    job.wait_for_step(step + 20)
    (folder / "enough").touch()
    time.sleep(0.3)
    assert read_hang_report(folder) is None
    assert STALLED not in [process.poll() for process in job.processes]


def beat(rank: int, **changes: object) -> RankHeartbeat:
    plain = RankHeartbeat(
        rank=rank,
        world_size=4,
        host=f"n{rank}",
        pid=1,
        started_ticks=0,
        time=1000.0,
        phase="training",
        step=40,
        step_time=900.0,
        median_step_s=1.0,
        median_work_s=0.9,
        marks=120,
        memory_gib=1.0,
        host_free_gib=10.0,
    )
    return replace(plain, **changes)


def test_a_rank_that_goes_on_while_it_is_looked_at_is_let_be(folder: Path, monkeypatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr("os._exit", ends.append)
    config = WatchdogConfig(heartbeat_s=0.05, stall_s=0.2, other_s=0.2)
    looked_at = threading.Event()
    with (
        Heartbeat(folder, rank=0, world_size=1, nodes=1, interval_s=0.05, steps=9) as heartbeat,
        Watchdog(heartbeat, config) as watchdog,
    ):
        monkeypatch.setattr(
            watchdog, "_dump_stacks", lambda: (looked_at.set(), heartbeat.note_progress())
        )
        assert looked_at.wait(PATIENCE_S)
        time.sleep(3 * config.heartbeat_s)
    assert not ends
    assert read_hang_report(folder) is None


def test_blame_prefers_the_absent_then_the_silent_then_the_least_far() -> None:
    beats = [beat(0), beat(1), beat(2, marks=118), beat(3, time=940.0)]
    absent = find_hung_rank([beats[0], *beats[2:]], 4, interval_s=10)
    assert absent == HangReport(1, None, "rank 1 never gave a sign of life")
    silent = find_hung_rank(beats, 4, interval_s=10)
    assert silent == HangReport(3, "n3", "rank 3 on n3 silent for 60 s")
    behind = find_hung_rank([*beats[:3], beat(3)], 4, interval_s=10)
    reason = "rank 2 on n2 hangs after step 40 (training); 3 of 4 ranks wait for it"
    assert behind == HangReport(2, "n2", reason)


def test_nobody_is_blamed_when_all_wait_at_the_same_place() -> None:
    nobody = find_hung_rank([beat(rank) for rank in range(4)], 4, interval_s=10)
    assert (nobody.rank, nobody.host) == (None, None)
    assert "all 4 ranks wait at the same place (step 40, training)" in nobody.reason


def test_an_unreadable_blame_is_none(folder: Path) -> None:
    assert read_hang_report(folder) is None
    (folder / "stall.json").write_text('{"rank": 1', encoding="utf-8")
    assert read_hang_report(folder) is None
