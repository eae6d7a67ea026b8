import json
from pathlib import Path

import pytest

from supersam.config.files import ATTEMPTS_FILE
from supersam.runs.attempts import (
    attempts_without_progress,
    end_attempt,
    read_attempts,
    start_attempt,
)

HOSTS = ("n1", "n2")


def save_step(folder: Path, step: int) -> None:
    (folder / "progress.json").write_text(json.dumps({"step": step}))


def attempt(folder: Path, *, saves: int | None = None, job_id: str = "7") -> None:
    started = start_attempt(folder, job_id=job_id, hosts=HOSTS, world_size=2)
    if saves is not None:
        save_step(folder, saves)
    end_attempt(folder, started, "failed", 1)


def test_attempts_are_numbered_over_jobs_and_hold_the_steps_they_began_and_ended_at(tmp_path):
    attempt(tmp_path, saves=20)
    attempt(tmp_path, saves=30, job_id="8")
    events = read_attempts(tmp_path)
    assert [event.attempt for event in events] == [1, 1, 2, 2]
    assert [event.step for event in events] == [0, 20, 20, 30]
    assert [event.job_id for event in events] == ["7", "7", "8", "8"]
    assert events[0].hosts == HOSTS


@pytest.mark.parametrize(("saves", "count"), [([None] * 3, 3), ([5, None, None], 2), ([5, 9], 0)])
def test_attempts_without_a_new_checkpoint_are_counted_from_the_last(tmp_path, saves, count):
    for step in saves:
        attempt(tmp_path, saves=step)
    assert attempts_without_progress(read_attempts(tmp_path), "7") == count


def test_a_new_submission_begins_a_new_count(tmp_path):
    attempt(tmp_path)
    attempt(tmp_path)
    assert attempts_without_progress(read_attempts(tmp_path), "8") == 0


def test_an_attempt_that_was_killed_is_ended_by_the_next_one(tmp_path):
    start_attempt(tmp_path, job_id="7", hosts=HOSTS, world_size=2)
    save_step(tmp_path, 4)
    start_attempt(tmp_path, job_id="7", restart_count=1, hosts=("n1", "n3"), world_size=2)
    _, ended, started = read_attempts(tmp_path)
    assert (ended.attempt, ended.event, ended.reason, ended.step) == (1, "end", "node failure", 4)
    assert ended.exit_code is None
    assert (started.attempt, started.restart_count, started.step) == (2, 1, 4)
    assert ended.time <= started.time


def test_a_line_cut_short_by_a_crash_costs_only_itself(tmp_path):
    attempt(tmp_path)
    whole = (tmp_path / ATTEMPTS_FILE).read_bytes()
    (tmp_path / ATTEMPTS_FILE).write_bytes(whole[:-20])
    assert [event.event for event in read_attempts(tmp_path)] == ["start"]
    start_attempt(tmp_path, job_id="7", hosts=HOSTS, world_size=2)
    assert [event.event for event in read_attempts(tmp_path)] == ["start", "end", "start"]
