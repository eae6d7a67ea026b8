"""One line says what happened: real processes that end badly, and the files they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob
from supersam.config.files import batch_log
from supersam.health.heartbeat import Heartbeat
from supersam.health.watchdog import HangReport
from supersam.runs.attempts import AttemptEvent, end_attempt, start_attempt
from supersam.status.diagnosis import explain
from supersam.status.run import RunRecord, read_record
from tests.patience import PATIENCE_S

HOST = socket.gethostname()
# A rank with a real heartbeat and without the weight of torch; `work` comes from the test.
RANK = """\
import os, resource, sys, time
from pathlib import Path
from supersam.config import UserError
from supersam.health.heartbeat import Heartbeat

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
with Heartbeat(folder, rank=rank, world_size=2, nodes=1, interval_s=0.1, steps=10) as heartbeat:
    heartbeat.begin(0)
    for step in range(1, 4):
        heartbeat.end_step(step)
    {work}
"""


def run_ranks(folder: Path, *works: str) -> None:
    """Run a process for each rank to its end."""
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text("optim: {steps: 10}\n", encoding="utf-8")
    (folder / "progress.json").write_text('{"step": 2}', encoding="utf-8")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK.format(work=work), folder, str(rank)],
            stderr=subprocess.DEVNULL,
        )
        for rank, work in enumerate(works)
    ]
    for rank in ranks:
        rank.wait(timeout=PATIENCE_S)


def why(folder: Path) -> tuple[str, str]:
    said = explain(read_record(folder, JobQueue()))
    assert "\n" not in said.text
    return said.kind, said.text


def test_an_exception_is_shown_with_rank_host_file_and_line(tmp_path: Path) -> None:
    faulty = tmp_path / "supersam" / "faulty.py"
    faulty.parent.mkdir()
    faulty.write_text("def work():\n    return [][3]\n", encoding="utf-8")
    work = f"sys.path.insert(0, {str(faulty.parent)!r}); import faulty; faulty.work()"
    lost = "raise RuntimeError('[gloo] Connection closed by peer [127.0.0.1]:23')"
    run_ranks(tmp_path / "run", lost, work)
    kind, text = why(tmp_path / "run")
    assert kind == "exception"
    place = f"exception on rank 1 host {HOST}: IndexError: list index out of range"
    assert text == f"{place} at supersam/faulty.py:2; saved at step 2"


def test_memory_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    work = "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); bytearray(2**32)"
    run_ranks(tmp_path, "pass", work)
    kind, text = why(tmp_path)
    assert kind == "out of memory"
    assert text.startswith(f"out of memory on rank 1 host {HOST}, 0.")
    assert "GiB in use: MemoryError: " in text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_named_even_when_no_heartbeat_can_be_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        run_ranks(disk, "(folder / 'weights').write_bytes(bytes(2**21))")
        kind, text = why(disk)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    assert kind == "disk full"
    assert text.startswith(f"disk full on {disk}: no byte is left")


def test_a_limit_on_file_size_counts_as_a_full_disk(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))"
    run_ranks(tmp_path, f"{limit}; (folder / 'weights').write_bytes(bytes(2**20))")
    kind, text = why(tmp_path)
    assert kind == "disk full"
    assert "rank 0" in text
    assert "File too large" in text


def test_a_killed_rank_is_named_not_the_one_that_lost_its_connection(tmp_path: Path) -> None:
    lost = "raise RuntimeError('Connection reset by peer')"
    run_ranks(tmp_path, lost, "os.kill(os.getpid(), 9)")
    kind, text = why(tmp_path)
    assert kind == "killed"
    assert text.startswith(f"rank 1 host {HOST} was killed at step ")


def test_a_mistake_keeps_its_own_words(tmp_path: Path) -> None:
    run_ranks(tmp_path, "raise UserError('no shards in data/x; make them with launch/shard.py')")
    expected = "mistake: no shards in data/x; make them with launch/shard.py; saved at step 2"
    assert why(tmp_path) == ("mistake", expected)


def test_a_second_ctrl_c_is_told_with_the_steps_that_it_costs(tmp_path: Path) -> None:
    run_ranks(tmp_path, "raise KeyboardInterrupt")
    said = "stopped at once by a second Ctrl-C at step 3; saved at step 2, 1 step will be"
    assert why(tmp_path) == ("stopped", f"{said} taken again")


def test_success_and_a_stop_on_request_are_no_failures(tmp_path: Path) -> None:
    run_ranks(tmp_path, "heartbeat.end_step(10)")
    assert why(tmp_path) == ("finished", "finished: 10 steps")
    run_ranks(tmp_path, "heartbeat.enter('stopped')")
    said = "stopped on request at step 3; saved at step 2, 1 step will be taken again"
    assert why(tmp_path) == ("stopped", said)
    started = start_attempt(tmp_path, job_id="7", hosts=["n1"], world_size=1)
    end_attempt(tmp_path, started, "cancelled", 143)  # as after a scancel
    assert why(tmp_path) == ("cancelled", f"cancelled{said.removeprefix('stopped on request')}")
    (tmp_path / "attempts.jsonl").unlink()
    (tmp_path / "cancel").touch()
    assert why(tmp_path) == ("cancelled", f"cancelled{said.removeprefix('stopped on request')}")


def test_an_attempt_that_starts_is_at_the_step_from_which_it_goes_on(tmp_path: Path) -> None:
    run_ranks(tmp_path, "heartbeat.enter('stopped')")
    with Heartbeat(tmp_path, rank=0, world_size=1, nodes=1, interval_s=60, steps=10):
        assert why(tmp_path) == ("running", "running: step 2 of 10 (20 %), starting")


def test_before_rank_0_gives_a_sign_the_last_attempts_word_is_not_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ranks(tmp_path, "heartbeat.enter('stopped')")
    monkeypatch.setattr(JobQueue, "jobs", lambda *_: {"7": SlurmJob("7", "RUNNING", nodes="n1")})
    start_attempt(tmp_path, job_id="7", hosts=["n1"], world_size=1)
    assert why(tmp_path) == ("running", "running: step 2 of 10 (20 %), starting")


@pytest.fixture
def lost_record(tmp_path: Path) -> RunRecord:
    """A run whose ranks n0 and n1 vanished on other hosts a while ago."""
    run_ranks(tmp_path, "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 9)")
    record = read_record(tmp_path, JobQueue())
    away = [replace(b, host=f"n{b.rank}", time=b.time - 3600 + b.rank) for b in record.heartbeats]
    return replace(record, heartbeats=away, job_id="7")


def event(attempt: int, kind: str, reason: str | None = None, step: int = 0) -> AttemptEvent:
    place = {"job_id": "7", "restart_count": 0, "hosts": ("n0", "n1"), "world_size": 2}
    return AttemptEvent(
        attempt=attempt, event=kind, time=100.0 * attempt, step=step, reason=reason, **place
    )


def test_a_job_that_was_cancelled_without_a_word_is_no_open_attempt(lost_record: RunRecord) -> None:
    job = SlurmJob("7", "CANCELLED", "", "n[0-1]", "")
    record = replace(lost_record, job=job, events=[event(1, "start")])
    said = explain(record)
    assert (said.kind, said.text.partition("; ")[2]) == ("cancelled", "saved at step 2")
    assert record.open_end == "cancelled"
    assert replace(record, job=replace(job, state="RUNNING")).open_end is None
    assert replace(record, job=None).open_end == "ended"


def test_slurm_knows_better_than_silence(lost_record: RunRecord) -> None:
    job = SlurmJob("7", "OUT_OF_MEMORY", "", "n[0-1]", "")
    said = explain(replace(lost_record, job=job))
    assert said.kind == "out of memory"
    assert said.text.startswith("out of memory on n[0-1]: Slurm says OUT_OF_MEMORY of job 7")
    assert explain(lost_record).kind == "killed"


def test_the_kernels_oom_killer_is_found_in_slurms_log(lost_record: RunRecord) -> None:
    log = lost_record.folder / "logs" / "7_0_log.out"
    log.parent.mkdir()
    log.write_text("srun: error: n4: task 3: Out Of Memory\n", encoding="utf-8")
    said = explain(lost_record)
    assert said.kind == "out of memory"
    assert said.text.startswith("out of memory on rank 3 host n4: ")


ENDED = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO "
SLURM_LINES = {
    f"{ENDED}TIME LIMIT ***": "time limit",
    f"{ENDED}PREEMPTION ***": "preempted",
    "srun: error: Node failure on n3": "node failure",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.": "out of memory",
}


@pytest.mark.parametrize("line", SLURM_LINES)
def test_slurms_own_lines_are_understood(lost_record: RunRecord, line: str) -> None:
    log = lost_record.folder / "logs" / "slurm-7.out"
    log.parent.mkdir()
    log.write_text(line + "\n", encoding="utf-8")
    assert explain(lost_record).kind == SLURM_LINES[line]


def test_a_traceback_in_a_log_is_enough_where_there_was_no_heartbeat(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{optim: {steps: 10}}", encoding="utf-8")
    logs = tmp_path / "logs"
    logs.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "def f():\n    raise ValueError('no such port')\nf()"],
        capture_output=True,
        text=True,
        check=False,
    )
    (logs / "task-00001.log").write_text(done.stderr, encoding="utf-8")
    attempt = json.dumps(vars(event(1, "start")) | {"time": time.time()}, default=list)
    (tmp_path / "attempts.jsonl").write_text(attempt + "\n", encoding="utf-8")
    kind, text = why(tmp_path)
    assert kind == "exception"
    assert text.startswith("exception on rank 1: ValueError: no such port at <string>:2 ")


def test_history_tells_what_earlier_attempts_went_through(lost_record: RunRecord) -> None:
    events = [
        event(1, "start"),
        event(1, "end", "preempted", 200),
        event(2, "start", step=200),
        event(2, "end", "preempted", 420),
        event(3, "start", step=420),
    ]
    running = replace(lost_record, events=events, job=SlurmJob("7", "RUNNING", "", "n[0-1]", ""))
    assert explain(running).text.endswith("; preempted twice and resumed at step 420")
    waiting = SlurmJob("7", "PENDING", "Resources", "", "2026-01-01T10:00:00")
    pending = explain(replace(running, events=events[:4], job=waiting, saved_step=420))
    assert pending.text == (
        "in the queue as job 7: pending, reason Resources, expected start 2026-01-01T10:00:00; "
        "preempted twice and resumes at step 420"
    )


@pytest.mark.parametrize(
    "reason", ["launch_failed_requeued_held", "launch failed requeued held", "JobHeldUser"]
)
def test_a_job_on_hold_is_told_with_what_lets_it_go(reason: str) -> None:
    job = SlurmJob("7", "PENDING", reason)
    assert job.queue_words.startswith(f"in the queue as job 7: pending, reason {reason}; ")
    assert "scontrol release 7" in job.queue_words


def test_a_stall_is_explained_by_whom_the_watchdog_named(lost_record: RunRecord) -> None:
    named = HangReport(1, "n1", "rank 1 on n1 silent for 60 s")
    said = explain(replace(lost_record, hang=named))
    assert (said.kind, said.text) == ("stuck", "stuck: rank 1 on n1 silent for 60 s")


def test_a_running_process_of_another_program_is_not_taken_for_the_run(tmp_path: Path) -> None:
    run_ranks(tmp_path, "os.kill(os.getpid(), 9)")
    record = read_record(tmp_path, JobQueue())
    reused = [replace(beat, pid=os.getpid()) for beat in record.heartbeats]
    assert replace(record, heartbeats=reused).state == "lost"


def test_a_rank_killed_elsewhere_is_at_work_no_more_though_its_beat_is_fresh(
    tmp_path: Path,
) -> None:
    run_ranks(tmp_path, *["os.kill(os.getpid(), 9)"] * 2)
    seen = read_record(tmp_path, JobQueue())
    beats = [replace(beat, host="elsewhere", time=time.time()) for beat in seen.heartbeats]
    begun = replace(seen, heartbeats=beats, events=[event(1, "start")], job_id="7")
    assert begun.state == "running"
    over = SlurmJob("7", "OUT_OF_MEMORY", "", "elsewhere", "")
    for ended in (
        replace(begun, job=over),
        replace(begun, events=[event(1, "start"), event(1, "end", "failed")]),
    ):
        assert ended.state == "lost"
    assert explain(replace(begun, job=over)).kind == "out of memory"


def test_a_run_that_was_cancelled_before_its_first_step_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optim: {steps: 10}\n", encoding="utf-8")
    started = start_attempt(tmp_path, job_id="7", hosts=["n1"], world_size=1)
    end_attempt(tmp_path, started, "cancelled", None)
    assert why(tmp_path)[0] == "cancelled"


def test_a_killed_batch_step_is_not_a_stop_on_request(tmp_path: Path) -> None:
    """Slurm then tells the ranks to end: they save, and say that they were told."""
    run_ranks(tmp_path, "heartbeat.enter('stopped')", "heartbeat.enter('stopped')")
    record = replace(read_record(tmp_path, JobQueue()), job_id="7", events=[event(1, "start")])
    said = explain(replace(record, job=SlurmJob("7", "FAILED")))
    assert said.kind == "killed"
    assert said.text.startswith("the job's batch step was killed; its ranks were told to save")
    assert "Slurm says FAILED of job 7" in said.text
    assert explain(replace(record, job=SlurmJob("7", "CANCELLED"))).kind == "cancelled"


REQUEUES = (
    "supervisor: attempt 1 ended at step 2 (time limit, exit code 138); the run is requeued\n"
)


@pytest.mark.parametrize(
    ("later", "job", "kind"),
    [
        ("", "FAILED", "killed"),
        ("slurmstepd: error: *** JOB 7 ON n0 CANCELLED ***\n", "NODE_FAIL", "killed"),
        ("", "PENDING", "pending"),  # as ever, a moment later
        ("", "CANCELLED", "stopped"),
        ("supervisor: attempt 2 from step 2 on ['n0']\n", "FAILED", "stopped"),
        ("error: no folder shards/train\n", "FAILED", "stopped"),  # its next start ended so
    ],
)
def test_a_batch_step_that_was_killed_before_it_requeued_its_job_is_told(
    tmp_path: Path, later: str, job: str, kind: str
) -> None:
    run_ranks(tmp_path, "heartbeat.enter('stopped')", "heartbeat.enter('stopped')")
    log = batch_log(tmp_path, "7")
    log.parent.mkdir(exist_ok=True)
    log.write_text(REQUEUES + later, encoding="utf-8")
    events = [event(1, "start"), event(1, "end", "time limit")]
    record = replace(read_record(tmp_path, JobQueue()), job_id="7", events=events)
    record = replace(record, job=SlurmJob("7", job))
    said = explain(record)
    assert said.kind == kind
    if kind == "killed":
        assert record.state == "lost"
        assert said.text.startswith("time limit at step 3, and the batch step was killed before")
        assert f"Slurm says {job}" in said.text


def test_a_disk_that_became_read_only_comes_before_the_rank_that_left_no_word(
    lost_record: RunRecord,
) -> None:
    log = lost_record.folder / "logs" / "task-00000.attempt-001.log"
    log.parent.mkdir(exist_ok=True)
    trace = 'Traceback (most recent call last):\n  File "/x/supersam/a.py", line 3, in f\n'
    log.write_text(f"{trace}OSError: [Errno 30] Read-only file system: 'x'\n", encoding="utf-8")
    said = explain(lost_record)
    assert said.kind == "read-only disk"
    assert "Read-only file system" in said.text


def test_a_suspended_job_does_not_run(lost_record: RunRecord) -> None:
    job = SlurmJob("7", "SUSPENDED")
    said = explain(replace(lost_record, events=[event(1, "start")], job=job))
    assert said.text.startswith("suspended by Slurm: step ")


def test_nothing_is_said_to_have_resumed_where_nothing_was_saved(lost_record: RunRecord) -> None:
    events = [event(1, "start"), event(1, "end", "requeued"), event(2, "start")]
    running = replace(lost_record, events=events, job=SlurmJob("7", "RUNNING"))
    assert explain(running).text.endswith("; requeued once and started anew at step 0")


def test_a_silent_controller_is_no_failure_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optim: {steps: 10}\n", encoding="utf-8")
    start_attempt(tmp_path, job_id="7", hosts=["n1"], world_size=1)
    said = explain(replace(read_record(tmp_path, JobQueue()), job_id="7"))
    assert said.kind == "unknown"
    assert said.text.startswith("Slurm says nothing of job 7")
