"""Slurm is asked with time limits, and its silence costs one note. Its commands are stand-ins."""

from __future__ import annotations

import os
import time
from pathlib import Path

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob


def test_squeue_comes_first_and_sacct_is_asked_for_the_rest(slurm) -> None:
    slurm("squeue", "echo '7|RUNNING|None|n[1-2]|2026-01-01T10:00:00'")
    slurm("sacct", 'echo "$@" > "$(/usr/bin/dirname "$0")/asked"; echo "8|CANCELLED by 0|None|n3|"')
    queue = JobQueue()
    jobs = queue.jobs(["7", "8"])
    assert jobs["7"] == SlurmJob("7", "RUNNING", "", "n[1-2]", "2026-01-01T10:00:00")
    assert jobs["8"].state == "CANCELLED"
    assert not jobs["8"].is_active
    asked = (Path(os.environ["PATH"].split(":")[0]) / "asked").read_text(encoding="utf-8")
    assert asked.split()[-1] == "--jobs=8"
    assert queue.note is None


def test_each_element_of_an_array_is_asked_for(slurm) -> None:
    """Without --array, squeue shows those that wait as one line, `7_[0-1]`."""
    each = "echo '7_0|PENDING|None||'; echo '7_1|PENDING|None||'"
    slurm("squeue", f"case \"$*\" in *--array*) {each};; *) echo '7_[0-1]|PENDING|None||';; esac")
    assert sorted(JobQueue().jobs(["7_0", "7_1"])) == ["7_0", "7_1"]


def test_a_hanging_controller_costs_the_time_limit_and_one_note(slurm) -> None:
    slurm("squeue", "exec /bin/sleep 60")
    queue = JobQueue(timeout_s=0.3)
    began = time.monotonic()
    assert queue.jobs(["7"]) == {}
    assert time.monotonic() - began < 10
    assert queue.note is not None
    assert "squeue gave no answer within 0.3 s" in queue.note
    assert "\n" not in queue.note


def test_absent_accounting_and_a_forgotten_job_are_nothing_to_mention(slurm) -> None:
    slurm("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    slurm("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    queue = JobQueue()
    assert queue.jobs(["7"]) == {}
    assert queue.note is None


def test_without_slurm_only_a_run_with_a_job_is_worth_a_note(slurm) -> None:
    queue = JobQueue()
    assert queue.jobs([]) == {}
    assert queue.note is None
    assert queue.jobs(["7"]) == {}
    assert queue.note is not None
    assert "no Slurm here" in queue.note
