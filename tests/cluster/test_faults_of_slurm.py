"""What Slurm and networks do to a run, on the real cluster, with ranks that need no torch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from supersam.health.watchdog import read_hang_report
from tests.cluster.handle import RUN_ROOT, DevCluster, wait_for
from tests.cluster.light_run import PATIENCE_S, LightRun

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


def state_is_saved(cluster: DevCluster, since: float) -> None:
    """Until slurmctld has written its state: it forgets what is newer when it is killed."""
    saved = RUN_ROOT / cluster.name / "state" / "job_state"
    wait_for(lambda: saved.stat().st_mtime > since, 60, what="slurmctld saving its state")


def plug(cluster: DevCluster, host: str, state: str) -> None:
    """Pull a host's network plug, or put it back."""
    cluster.control("shell", host, "--", "ip", "link", "set", "eth0", state)


def test_a_rank_that_dies_while_the_controller_is_away_costs_an_attempt_and_no_more(
    devcluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run = LightRun(devcluster, folder, monkeypatch, nodes=2)
    assert run.submit() == 0
    run.open_gate(10)
    run.wait_for_step(10)
    state_is_saved(devcluster, run.events("start")[0].time)
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
    orphan = run.beat(1)
    plug(devcluster, orphan.host, "down")
    try:
        run.wait_for_event("start", 2)
        run.open_gate(20)
        run.wait_for_step(20, attempt=2)
        left = (folder / "logs" / "task-00001.attempt-001.log").read_text
        wait_for(lambda: "attempt 1 of this run is over" in left(), PATIENCE_S, what="its end")
        assert {beat.host for beat in (run.beat(0), run.beat(1))}.isdisjoint({orphan.host})
        assert read_hang_report(folder) is None
        assert [e.attempt for e in run.events("start")] == [1, 2]
    finally:
        plug(devcluster, orphan.host, "up")
        devcluster.run(["scancel", run.job_id])


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
    assert {run.beat(0).host, run.beat(1).host} == {"n2", "n3"}
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
    assert "error: " not in run.supervisor_log().replace("slurmstepd: error: ", "").replace(
        "slurmstepd-", ""
    )
    devcluster.run(["scancel", run.job_id])
