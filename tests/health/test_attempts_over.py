"""A rank that outlives its attempt writes nothing and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supersam.health.heartbeat import SUPERSEDED, Heartbeat
from supersam.health.records import ATTEMPT_VARIABLE, is_attempt_over, read_heartbeats
from supersam.health.watchdog import HangReport, read_hang_report, record_hang
from supersam.runs.attempts import end_attempt, start_attempt
from tests.patience import PATIENCE_S

# Its main thread waits, as in a collective with ranks that are gone.
RANK = """\
import sys, time
from pathlib import Path
from supersam.health.heartbeat import Heartbeat

folder = Path(sys.argv[1])
with Heartbeat(folder, rank=0, world_size=1, nodes=1, interval_s=0.1, steps=10):
    print("begun", flush=True)
    time.sleep(3600)
"""


def heartbeat(folder: Path) -> Heartbeat:
    return Heartbeat(folder, rank=0, world_size=1, nodes=1, interval_s=60, steps=10)


def test_a_rank_whose_attempt_is_over_ends_its_process(tmp_path: Path) -> None:
    first = start_attempt(tmp_path, job_id="7", hosts=["n1"], world_size=1)
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, tmp_path],
        env={**os.environ, ATTEMPT_VARIABLE: str(first.attempt)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "begun\n"
        assert rank.poll() is None
        start_attempt(tmp_path, job_id="7", hosts=["n2"], world_size=1)
        assert rank.wait(timeout=PATIENCE_S) == SUPERSEDED
    finally:
        rank.kill()
        rank.wait()


def test_its_signs_of_life_are_not_the_next_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_attempt(tmp_path, hosts=["n1"], world_size=1)
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    with heartbeat(tmp_path) as old:
        old.begin(3)
        old.write()
        start_attempt(tmp_path, hosts=["n2"], world_size=1)
        monkeypatch.setenv(ATTEMPT_VARIABLE, "2")
        with heartbeat(tmp_path) as new:
            new.begin(5)
            new.write()
            old.write()
            assert [(beat.attempt, beat.step) for beat in read_heartbeats(tmp_path)] == [(2, 5)]


def test_an_attempt_is_over_when_its_end_or_a_later_start_is_recorded(tmp_path: Path) -> None:
    started = start_attempt(tmp_path, hosts=["n1"], world_size=1)
    assert not is_attempt_over(tmp_path, 1)
    end_attempt(tmp_path, started, "failed", 1)
    assert is_attempt_over(tmp_path, 1)
    assert not is_attempt_over(tmp_path, 2)
    start_attempt(tmp_path, hosts=["n1"], world_size=1)
    assert not is_attempt_over(tmp_path, 2)
    assert is_attempt_over(tmp_path, 1)
    assert not is_attempt_over(tmp_path, 0)  # of a rank that does not know


def test_a_hang_is_reported_of_its_attempt_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    record_hang(tmp_path / "run", HangReport(1, None, "rank 1 hangs"), step=3, attempt=1)
    assert read_hang_report(tmp_path / "run", attempt=2) is None
    for found in (
        read_hang_report(tmp_path / "run", attempt=1),
        read_hang_report(tmp_path / "run"),
    ):
        assert found is not None
        assert found.rank == 1
    file = tmp_path / "run" / "stall.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    del written["attempt"]  # as older versions wrote it
    file.write_text(json.dumps(written), encoding="utf-8")
    assert read_hang_report(tmp_path / "run", attempt=2) is not None
