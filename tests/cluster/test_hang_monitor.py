"""The supervisor sees a rank that can no longer say that it is stuck."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from supersam.cluster.slurm.hang_monitor import HangMonitor
from supersam.cluster.slurm.srun import GRACE_S
from supersam.config import WatchdogConfig
from supersam.config.files import HEARTBEATS
from supersam.health.bad_hosts import count_host_hangs
from supersam.health.records import Phase, RankHeartbeat
from supersam.health.watchdog import HangReport, read_hang_report, record_hang

CONFIG = WatchdogConfig(heartbeat_s=10, stall_s=60)
LIMIT_S = 90.0


class Scene:
    """A run folder whose ranks beat when told to, under a monitor whose clock is turned by hand."""

    def __init__(self, folder: Path, config: WatchdogConfig = CONFIG) -> None:
        self.folder, self.now = folder, 1000.0
        (folder / HEARTBEATS).mkdir(parents=True)
        self.beat(0, attempt=1)  # it has no end: its process may still beat
        self.monitor = HangMonitor(folder, config, attempt=2, clock=lambda: self.now)

    def beat(self, rank: int, *, phase: Phase = "training", attempt: int = 2) -> None:
        beat = RankHeartbeat(
            rank=rank,
            world_size=2,
            host=f"n{rank}",
            pid=1,
            started_ticks=0,
            time=self.now,
            phase=phase,
            step=40,
            step_time=900.0,
            median_step_s=1.0,
            median_work_s=0.9,
            marks=120,
            memory_gib=1.0,
            host_free_gib=10.0,
            attempt=attempt,
        )
        path = self.folder / HEARTBEATS / f"rank-{rank:05d}.json"
        path.write_text(json.dumps(asdict(beat)), encoding="utf-8")

    def pass_time(self, seconds: float, *beating: int) -> bool:
        """Whether the monitor saw a hang meanwhile."""
        for _ in range(int(seconds / 10)):
            self.now += 10
            for rank in beating:
                self.beat(rank)
            if self.monitor.detects_hang():
                return True
        return False


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "run")


def test_a_silent_rank_is_blamed_beyond_the_limit_and_not_before(scene: Scene) -> None:
    assert not scene.pass_time(50, 0, 1)
    assert not scene.pass_time(LIMIT_S - 10, 0)
    assert scene.pass_time(30, 0)
    found = read_hang_report(scene.folder)
    assert found is not None
    assert (found.rank, found.host) == (1, "n1")
    assert "rank 1 on n1 gave no sign of life for" in found.reason
    assert count_host_hangs(scene.folder) == {"n1": 1}


def test_a_rank_alone_that_is_stopped_is_seen(scene: Scene) -> None:
    assert not scene.pass_time(50, 0)
    assert scene.pass_time(LIMIT_S + 30)


def test_ranks_that_have_not_begun_or_have_ended_are_not_silent(scene: Scene) -> None:
    assert not scene.pass_time(10 * LIMIT_S)  # rank 0's beat is of an earlier attempt
    scene.now += 10
    scene.beat(1, phase="failed")
    assert not scene.pass_time(10 * LIMIT_S)


def test_a_rank_that_falls_silent_as_another_fails_was_killed_and_has_not_hung(
    scene: Scene,
) -> None:
    assert not scene.pass_time(50, 0, 1)
    scene.beat(0, phase="failed")
    assert not scene.pass_time(LIMIT_S + 20)
    assert scene.pass_time(GRACE_S)  # should Slurm not end the rest of it


def test_time_in_which_this_host_was_suspended_does_not_count(scene: Scene) -> None:
    assert not scene.pass_time(50, 0, 1)
    scene.now += 10 * LIMIT_S
    assert not scene.monitor.detects_hang()
    assert not scene.pass_time(LIMIT_S - 20, 0, 1)


def test_a_full_disk_is_no_evidence(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not scene.pass_time(50, 0, 1)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("supersam.cluster.slurm.hang_monitor.renew_lease", fail)
    assert not scene.pass_time(10 * LIMIT_S)
    assert read_hang_report(scene.folder) is None


def test_a_blame_of_the_ranks_ends_the_attempt_after_a_moment_for_their_stacks(
    scene: Scene,
) -> None:
    record_hang(scene.folder, HangReport(1, "n1", "rank 1 on n1 hangs"), step=3, attempt=2)
    assert not scene.monitor.detects_hang()
    scene.now += 6
    assert scene.monitor.detects_hang()


def test_a_blame_of_an_earlier_attempt_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    record_hang(folder, HangReport(1, "n1", "rank 1 on n1 hangs"), step=3, attempt=2)
    assert not Scene(folder).pass_time(50)


def test_a_watchdog_that_is_off_is_off_here_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", CONFIG.model_copy(update={"enabled": False}))
    assert not scene.pass_time(50, 0)
    assert not scene.pass_time(10 * LIMIT_S)
