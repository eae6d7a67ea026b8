"""What Slurm and networks do to a run, on the real cluster, with ranks that need no torch."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest

from supersam.cluster.slurm import commands as slurm
from supersam.health.bad_hosts import count_host_hangs
from supersam.health.watchdog import read_hang_report
from tests.cluster.handle import RUN_ROOT, DevCluster, wait_for
from tests.cluster.light_run import PATIENCE_S, LightRun
from tests.cluster.tiny_run import status, why

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_rank_that_dies_while_the_controller_is_away_costs_an_attempt_and_no_more(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run = LightRun(devcluster, folder, monkeypatch, nodes=2)
    assert run.submit() == 0
    run.open_gate(10)
    run.wait_for_step(10)
    devcluster.wait_for_saved_state(run.events("start")[0].time)
    devcluster.kill("ctl")
    run.signal(1, "KILL")
    log = folder / "logs" / "task-00000.attempt-001.log"
    wait_for(lambda: "another rank failed" in log.read_text(), PATIENCE_S, what="the other's end")
    devcluster.start("ctl")
    run.open_gate(20)
    run.wait_for_step(20, attempt=2)
    assert [(e.reason, e.step) for e in run.events("end")] == [("failed", 10)]
    assert run.events("start")[1].restart_count == 0
    devcluster.run(["scancel", run.job_id])


def test_a_rank_of_an_attempt_that_is_over_ends_and_the_next_one_never_hears_of_it(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A host without network goes on writing to the run folder, which here is not on a network."""
    run = LightRun(devcluster, folder, monkeypatch, nodes=2, watchdog={"stall_s": 600})
    assert run.submit() == 0
    run.open_gate(10)
    run.wait_for_step(10)
    orphan = run.heartbeat(1)
    devcluster.control("shell", orphan.host, "--", "ip", "link", "set", "eth0", "down")
    try:
        run.wait_for_event("start", 2)
        run.open_gate(20)
        run.wait_for_step(20, attempt=2)
        left = (folder / "logs" / "task-00001.attempt-001.log").read_text
        wait_for(lambda: "attempt 1 of this run is over" in left(), PATIENCE_S, what="its end")
        assert {beat.host for beat in (run.heartbeat(0), run.heartbeat(1))}.isdisjoint(
            {orphan.host}
        )
        assert read_hang_report(folder) is None
        assert [e.attempt for e in run.events("start")] == [1, 2]
    finally:
        devcluster.kill(orphan.host)  # as it is, Slurm would not see it again for a while


def test_a_folder_that_no_host_shares_is_named(
    devcluster: DevCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """/tmp is each host's own: Slurm cannot even open the log."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        run = LightRun(devcluster, Path(place) / "run", monkeypatch, nodes=1, wait=True)
        assert run.submit() == 1
    said = capfd.readouterr().err
    assert f"its log {place}/run/slurm/{1}"[:-1] in said
    assert "never appeared" in said
    assert "choose a --run DIR that all nodes share" in said


def test_a_requeued_job_starts_where_enough_hosts_are_free_for_its_ranks(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its spare host is taken, or broken: it does not wait for another one."""
    everywhere = ",".join(devcluster.hosts[3:])
    run = LightRun(devcluster, folder, monkeypatch, nodes=2, spare_nodes=1, exclude=everywhere)
    assert run.submit() == 0
    run.open_gate(10)
    run.wait_for_step(10)
    hosts = devcluster.job(run.job_id)["NumNodes"]
    assert hosts == "3"
    devcluster.kill("n1")  # the supervisor's
    run.open_gate(20)
    run.wait_for_step(20, attempt=2)
    assert {run.heartbeat(0).host, run.heartbeat(1).host} == {"n2", "n3"}
    devcluster.run(["scancel", run.job_id])


def test_a_requeue_while_the_supervisor_starts_is_no_fault_of_the_users(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run = LightRun(devcluster, folder, monkeypatch, nodes=2)
    assert run.submit() == 0
    wait_for(lambda: "Loading pickle" in run.supervisor_log(), PATIENCE_S, what="the supervisor")
    devcluster.run(["scontrol", "requeue", run.job_id])
    run.open_gate(10)
    wait_for(lambda: bool(run.events("start")), PATIENCE_S, what="an attempt after the requeue")
    last = run.events("start")[-1]
    run.wait_for_step(10, attempt=last.attempt)
    assert "too few hosts in this allocation" not in run.supervisor_log()
    assert [event.reason for event in run.events("end")] in ([], ["requeued"])


def test_a_requeued_job_that_need_not_wait_starts_on_the_host_that_it_has_just_left(
    devcluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the very second in which it left, the host would refuse it, and Slurm call it FAILED."""
    monkeypatch.setenv("SLURM_CONF", devcluster.env["SLURM_CONF"])
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep 600\n")
    job_id = devcluster.submit(script, "--nodelist=n2", "--output=/dev/null")

    def state() -> str:
        return devcluster.job(job_id)["JobState"]

    def is_settled() -> bool:
        return state() in ("RUNNING", "FAILED")

    for restarts in range(5):
        wait_for(is_settled, PATIENCE_S, what=f"start {restarts}")
        assert state() == "RUNNING"
        time.sleep(1.0 - time.time() % 1.0)  # the whole second is left for the way back
        devcluster.run(["scontrol", "requeue", job_id])
        wait_for(lambda: state() == "PENDING", PATIENCE_S, what="the way back to the queue")
        slurm.end_begin_time_wait(job_id)
    wait_for(is_settled, PATIENCE_S, what="the last start")
    assert state() == "RUNNING"


def test_a_job_that_no_host_could_start_is_held_and_the_status_says_what_to_do(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = RUN_ROOT / devcluster.name / "hosts" / "n2" / "spool"
    away = broken.with_name("spool-away")
    broken.rename(away)  # slurmd has no place for the job's script
    try:
        run = LightRun(devcluster, folder, monkeypatch, nodes=1, sbatch=["nodelist=n2"])
        assert run.submit() == 0

        def is_held() -> bool:
            return "held" in devcluster.job(run.job_id)["Reason"]

        wait_for(is_held, PATIENCE_S, what="a job on hold")
        assert f"scontrol release {run.job_id}" in why(folder, devcluster.env)["text"]
    finally:
        shutil.rmtree(broken, ignore_errors=True)  # slurmd may have begun another
        away.rename(broken)
    devcluster.run(["scontrol", "release", run.job_id])
    run.open_gate(10)
    run.wait_for_step(10)
    run.cancel(attempts=1)


def test_a_place_taken_at_once_is_called_preempted_after_the_controller_forgot_it(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a grace time the signal of this cluster comes with the end, and may come too late."""
    run = LightRun(devcluster, folder, monkeypatch, nodes=2)
    devcluster.run(["scontrol", "update", "PartitionName=batch", "GraceTime=0"])
    try:
        assert run.submit() == 0
        run.open_gate(10)
        run.wait_for_step(10)
        urgent = folder.parent / "urgent.sh"
        urgent.write_text("#!/bin/sh\nsleep 2\n")
        devcluster.submit(urgent, "-p", "urgent", "-N8", "--exclusive", "--output=/dev/null")
        end = run.wait_for_event("end", 1)
        run.open_gate(20)
        run.wait_for_step(20, attempt=2)
    finally:
        devcluster.run(["scontrol", "update", "PartitionName=batch", "GraceTime=20"])
    assert end.reason in ("preempted", "preempted without notice")
    again = run.events("start")[1]
    assert again.restart_count == 1
    said = why(folder, devcluster.env)["text"]
    assert f"; {end.reason} once and resumed at step 10" in said
    run.cancel(attempts=2)


def test_hosts_of_stopped_ranks_are_named_and_left_out(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """First a rank that another one misses, then all of them, which only the supervisor sees."""
    run = LightRun(devcluster, folder, monkeypatch, nodes=2)
    assert run.submit() == 0
    run.open_gate(15)
    run.wait_for_step(15)
    stopped = run.heartbeat(1)
    run.signal(1, "STOP")
    first = run.wait_for_event("end", 1)
    assert (first.reason, first.step) == ("stuck", 10)
    again = run.wait_for_event("start", 2)
    assert (again.step, again.restart_count) == (10, 1)  # nobody waited for the job
    assert stopped.host not in again.hosts
    assert devcluster.job(run.job_id)["ExcNodeList"] == stopped.host
    assert count_host_hangs(folder) == {stopped.host: 1}
    assert f"hung hosts   {stopped.host} 1" in status(folder, env=devcluster.env).stdout

    run.open_gate(25)
    run.wait_for_step(25, attempt=2)
    for rank in (0, 1):
        run.signal(rank, "STOP")
    assert run.wait_for_event("end", 2).reason == "stuck"
    report = read_hang_report(folder)
    assert report is not None
    assert report.host in again.hosts
    assert f"rank {report.rank} on {report.host} gave no sign of life for" in report.reason
    assert report.host not in run.wait_for_event("start", 3).hosts
    run.wait_for_step(20, attempt=3)
    run.cancel(attempts=3)


def test_two_runs_on_the_same_hosts_a_silent_controller_and_a_time_limit(
    devcluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = {"nodes": 2, "sbatch": ["nodelist=n1,n2"], "signal_delay_s": 110}
    limited, other = (
        LightRun(devcluster, tmp_path / name, monkeypatch, **place) for name in ("limited", "other")
    )
    for run in (limited, other):
        assert run.submit() == 0
        run.open_gate(10)
    for run in (limited, other):
        run.wait_for_step(10)
        assert set(run.events("start")[0].hosts) == {"n1", "n2"}
    devcluster.wait_for_saved_state(other.events("start")[0].time)
    devcluster.kill("ctl")
    for run in (limited, other):
        run.open_gate(25)
        run.wait_for_step(25)  # they train on without a controller
    devcluster.start("ctl")
    devcluster.end_time_soon(limited.job_id)
    first = limited.wait_for_event("end", 1)
    assert (first.reason, first.step) == ("time limit", 25)
    again = limited.wait_for_event("start", 2)
    devcluster.set_limit(limited.job_id, 50)
    assert (again.step, again.restart_count) == (25, 1)
    limited.open_gate(30)
    limited.wait_for_step(30, attempt=2)
    limited.cancel(attempts=2)
    other.cancel(attempts=1)
    assert "cancelled at step 30" in why(limited.folder, devcluster.env)["text"]


def test_a_dead_host_costs_a_requeue_or_a_spare_takes_its_place(
    devcluster: DevCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two runs at once, as each waits most of the time for Slurm to notice."""
    # Not where the other runs: Slurm could give it the other's dead host, unnoticed yet.
    places = {
        "alone": {"nodes": 2, "exclude": "n3,n4,n5"},
        "spared": {"nodes": 2, "spare_nodes": 1, "exclude": "n1,n2"},
    }
    patient = {"stall_s": 600}  # Slurm notices before a watchdog does
    alone, spared = (
        LightRun(devcluster, tmp_path / name, monkeypatch, watchdog=patient, **place)
        for name, place in places.items()
    )
    dead = {}
    for run in (alone, spared):
        assert run.submit() == 0
        run.open_gate(10)
        run.wait_for_step(10)
        dead[run] = run.events("start")[0].hosts[1]
        devcluster.kill(dead[run])
        run.open_gate(20)
    for run in (alone, spared):
        run.wait_for_step(20, attempt=2)
        assert [(e.reason, e.step) for e in run.events("end")] == [("node failure", 10)]
        last = run.events("start")[-1]
        assert last.restart_count == (0 if run is spared else 1)
        assert dead[run] not in last.hosts
    alone.cancel(attempts=2)
    spared.cancel(attempts=2)
