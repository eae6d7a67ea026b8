"""What the supervisor makes of Slurm's answers, which stand-ins for its commands give here."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supersam.cluster.slurm import follow, srun, supervisor
from supersam.cluster.slurm.commands import (
    KilledCommandError,
    SlurmError,
    expand_hosts,
    requeue,
    retry_slurm,
)
from supersam.cluster.slurm.follow import wait_for_end
from supersam.cluster.slurm.supervisor import _Job
from supersam.config import TrainRun, UserError
from supersam.config.files import batch_log
from supersam.runs.attempts import end_attempt, read_attempts, start_attempt
from supersam.runs.folder import prepare_run_folder

Install = Callable[[str, str], None]
SCONTROL = """\
case "$*" in
  "show hostnames"*) echo {hosts};;
  "show job"*) echo JobId=7 JobState=RUNNING Restarts=0;;
  *) echo "$@" >> {asked};;
esac"""
NOT_AT_FIRST = 'if [ ! -e "$0.asked" ]; then : > "$0.asked"; kill -{signal} $$; fi'


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Install) -> Iterator[_Job]:
    """Job 7 of a run that needs two nodes. Its requeue is noted in a file, and ends nothing."""
    cluster = {"nodes": 2, "min_nodes": 2}
    data = {"source": "synthetic"}
    run = TrainRun.model_validate({"run": tmp_path / "run", "data": data, "cluster": cluster})
    prepare_run_folder(run)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(srun, "GRACE_S", 0)
    slurm("squeue", "echo n[1-2]")
    slurm("scontrol", SCONTROL.format(hosts="n1 n2", asked=tmp_path / "asked"))
    slurm("sbatch", f"echo release >> {tmp_path}/asked")
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
    before = [signal.getsignal(number) for number in signals]
    yield _Job(run.folder)
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def test_an_allocation_with_a_dead_host_goes_back_into_the_queue(
    job: _Job, slurm: Install, tmp_path: Path
):
    """Slurm may hand out a host before it knows that it is dead: no attempt, and no fault."""
    slurm("sinfo", "echo n1 allocated; echo n2 down*")
    assert job._attempt_all() == 1
    assert (tmp_path / "asked").read_text().splitlines() == ["release", "requeue 7"]
    assert read_attempts(job.folder) == []


@pytest.mark.parametrize(
    ("former", "state", "reason"),
    [("6", "CANCELLED", "cancelled"), ("6", "FORGOTTEN", "ended"), ("7", "RUNNING", "requeued")],
)
def test_only_a_job_that_slurm_requeued_is_called_so(
    job: _Job, slurm: Install, former: str, state: str, reason: str
):
    start_attempt(job.folder, job_id=former, hosts=("n1", "n2"), world_size=2)
    slurm("sinfo", "echo n1 allocated; echo n2 allocated")
    slurm("squeue", f"echo '{former}|{state}|None|n[1-2]|'")
    assert job._former_fault() == reason


TAKEN = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01 DUE TO PREEMPTION ***"


def test_a_place_that_was_taken_without_notice_is_called_so(job: _Job, slurm: Install):
    """By Slurm's line in the log of the last start, or by the accounting."""
    slurm("sinfo", "echo n1 allocated; echo n2 allocated")
    first = start_attempt(job.folder, job_id="7", hosts=("n1", "n2"), world_size=2)
    log = batch_log(job.folder, "7")
    log.parent.mkdir()
    log.write_text(f"supervisor: attempt 1 from step 0 on n[1-2]\n{TAKEN}\n")
    assert job._former_fault() == "preempted without notice"
    end_attempt(job.folder, first, "preempted without notice", None)
    start_attempt(job.folder, job_id="7", hosts=("n1", "n2"), world_size=2)
    with log.open("a") as more:
        more.write("supervisor: attempt 2 from step 0 on n[1-2]\n")
    assert job._former_fault() == "requeued"
    slurm("sacct", "printf '7|PREEMPTED|None|n1|\\n7|REQUEUED|None|n1|\\n7|RUNNING|None|n1|\\n'")
    assert job._former_fault() == "requeued"
    slurm("sacct", "printf '7|REQUEUED|None|n1|\\n7|PREEMPTED|None|n1|\\n7|RUNNING|None|n1|\\n'")
    assert job._former_fault() == "preempted without notice"


def test_an_allocation_that_lives_and_is_too_small_is_the_users_to_mend(
    job: _Job, slurm: Install, tmp_path: Path
):
    slurm("sinfo", "echo n1 allocated")
    slurm("squeue", "echo n1")
    slurm("scontrol", SCONTROL.format(hosts="n1", asked=tmp_path / "asked"))
    with pytest.raises(UserError, match="too few hosts in this allocation"):
        job._attempt_all()
    assert not (tmp_path / "asked").exists()


def test_an_allocation_that_slurm_has_taken_back_is_left_without_a_fault(
    job: _Job, slurm: Install, tmp_path: Path
):
    """A requeue within the first second: squeue names no host any more."""
    slurm("squeue", "echo")
    assert job.execute() == 1
    assert (tmp_path / "asked").read_text().splitlines() == ["release"]
    assert read_attempts(job.folder) == []


def test_an_srun_that_starts_no_rank_is_no_attempt(
    job: _Job, slurm: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where the controller is back and still holds the memory of the step before."""
    (job.folder / "logs").mkdir()
    monkeypatch.setattr(supervisor, "growing_pauses", lambda *_: iter([0.1] * 9))
    slurm("sinfo", "echo n1 allocated; echo n2 allocated")
    slurm(
        "srun",
        f"echo srun >> {tmp_path}/asked\n"
        f"[ $(/usr/bin/wc -l < {tmp_path}/asked) -ge 3 ] || exit 1\n"
        f": > {job.folder}/logs/task-00000.attempt-001.log; exit 3",
    )
    started = start_attempt(job.folder, job_id="7", hosts=("n1", "n2"), world_size=2)
    assert job._run_ranks(started, ["n1", "n2"]) == 3
    assert (tmp_path / "asked").read_text().splitlines() == ["srun"] * 3


def test_a_folder_that_cannot_be_written_ends_the_supervisor_in_one_line(
    job: _Job, monkeypatch: pytest.MonkeyPatch, capsys
):
    def fail(self: _Job) -> int:
        raise OSError(30, "Read-only file system", str(job.folder / "attempts.jsonl"))

    monkeypatch.setattr(_Job, "execute", fail)
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(job.folder))
    with pytest.raises(SystemExit) as ended:
        supervisor.Supervisor(str(job.folder))()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert "the same command goes on when the folder can be written again" in said


def test_one_answer_in_the_moment_of_a_requeue_is_not_the_end_of_a_job(
    slurm: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    states = tmp_path / "states"
    states.write_text("NODE_FAIL\nPENDING\nRUNNING\nCOMPLETED\nCOMPLETED\n")
    slurm(
        "scontrol",
        f'read -r state < {states}; /usr/bin/sed -i 1d {states}; echo "JobId=7 JobState=$state"',
    )
    monkeypatch.setattr(follow, "_POLL_S", 0.0)
    monkeypatch.setattr(follow, "_CONFIRM_S", 0.0)
    job = wait_for_end("7", lambda: None)
    assert job is not None
    assert job.state == "COMPLETED"
    assert states.read_text() == ""


def test_who_follows_a_job_ends_its_wait_once_for_each_requeue(
    slurm: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each time puts the start off by two seconds: every second, the job would never start."""
    waits = "PENDING Reason=BeginTime Restarts="
    states, updates = tmp_path / "states", tmp_path / "updates"
    states.write_text(
        f"{waits}1\n{waits}1\n{waits}1\nRUNNING Restarts=1\n{waits}2\n{waits}2\n"
        "RUNNING Restarts=2\nCOMPLETED Restarts=2\nCOMPLETED Restarts=2\n"
    )
    slurm(
        "scontrol",
        f'if [ "$1" = update ]; then echo "$3" >> {updates}; exit; fi\n'
        f'read -r state < {states}; /usr/bin/sed -i 1d {states}; echo "JobId=7 JobState=$state"',
    )
    monkeypatch.setattr(follow, "_POLL_S", 0.0)
    monkeypatch.setattr(follow, "_CONFIRM_S", 0.0)
    wait_for_end("7", lambda: None)
    assert updates.read_text() == "StartTime=now+2seconds\n" * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_a_signal_ended_is_asked_again_and_slurm_not_blamed(
    slurm: Install, caplog: pytest.LogCaptureFixture, number: signal.Signals
):
    slurm("scontrol", f"{NOT_AT_FIRST.format(signal=number.value)}; echo n1 n2")
    with caplog.at_level(logging.WARNING):
        assert retry_slurm(lambda: expand_hosts("n[1-2]")) == ["n1", "n2"]
    assert caplog.text == ""


def test_who_follows_a_job_reads_nothing_of_a_command_that_a_signal_ended(slurm: Install):
    slurm("scontrol", f"{NOT_AT_FIRST.format(signal=15)}; echo JobId=7 JobState=COMPLETED")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        facts = wait_for_end("7", lambda: None)
    assert facts is not None
    assert facts.state == "COMPLETED"
    assert said.getvalue() == ""


def test_a_signal_is_told_from_a_refusal(slurm: Install):
    slurm("scontrol", "kill -TERM $$")
    with pytest.raises(KilledCommandError, match="scontrol was ended by SIGTERM"):
        requeue("7")
    slurm("scontrol", "echo 'Access denied' >&2; exit 1")
    with pytest.raises(SlurmError, match="Access denied"):
        requeue("7")
