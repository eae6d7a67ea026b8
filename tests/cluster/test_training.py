"""Real training on the real cluster: it survives what clusters do. About five minutes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supersam.cluster.attempts import read_attempts
from supersam.cluster.submission import submitted_job
from tests.cluster.handle import DevCluster, wait_for
from tests.cluster.training import (
    ENCLOSING,
    STEPS,
    assert_same_losses,
    assert_same_weights,
    ends,
    has_saved,
    launch,
    printed,
    reference_run,
    samples_by_step,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_S = 600  # a busy machine imports torch slowly
SLURM = ("--time", "1:00:00", "--signal-delay-s", "60", "--wait")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two ranks."""
    return reference_run(tmp_path_factory.mktemp("reference") / "two", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run folder; when the test fails, what its commands and supervisors printed is shown."""
    folder = tmp_path / "run"
    yield folder
    for log in [folder.with_suffix(".log"), *folder.glob("slurm/*.out")]:
        if log.exists():
            print(f"--- {log}\n{log.read_text()}")


def job_of(folder: Path) -> str:
    """The run's job, once it is submitted."""
    wait_for(lambda: submitted_job(folder) is not None, PATIENCE_S, what="submitted")
    job = submitted_job(folder)
    assert job is not None
    return job


def wait_for_attempt(folder: Path, number: int) -> None:
    """Until the ranks of an attempt have taken a step of their own."""
    logs = folder / "logs"

    def steps() -> bool:
        log = logs / f"task-00000.attempt-{number:03d}.log"
        return log.exists() and "I step " in log.read_text()

    wait_for(steps, PATIENCE_S, what=f"first step of attempt {number}")


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """The command ends with 0, and the run is complete."""
    assert process.wait(timeout=PATIENCE_S) == 0, printed(folder)
    assert has_saved(folder, STEPS)
    assert f"code {folder}/code" in printed(folder)
    assert ends(folder)[-1].reason == "finished"


def test_eight_hosts_train_as_one_process_does(devcluster: DevCluster, folder: Path, tmp_path):
    began = time.monotonic()
    process = launch(folder, "--nodes", "8", *SLURM, env=devcluster.env | ENCLOSING)
    wait_for_attempt(folder, 1)
    print(f"submit to first step on 8 hosts: {time.monotonic() - began:.0f} s")
    finish(process, folder)
    devcluster.wait_idle(timeout_s=10)
    (start, end) = read_attempts(folder)
    assert sorted(start.hosts) == devcluster.hosts
    assert (start.world_size, end.step, end.exit_code) == (8, STEPS, 0)
    alone = reference_run(tmp_path / "alone", 1)
    assert_same_losses(folder, alone)
    assert samples_by_step(folder) == samples_by_step(alone)


def test_notice_costs_no_step_and_no_sample(devcluster: DevCluster, folder: Path, reference: Path):
    process = launch(folder, "--nodes", "2", *SLURM, env=devcluster.env)
    job = job_of(folder)
    wait_for_attempt(folder, 1)
    devcluster.run(["scancel", "--signal=USR2", job])
    wait_for_attempt(folder, 2)
    devcluster.run(["scontrol", "requeue", job])
    wait_for_attempt(folder, 3)
    devcluster.run(["scontrol", "requeue", job])
    wait_for_attempt(folder, 4)
    sleep = "#!/bin/sh\nsleep 2\n"
    (folder.parent / "urgent.sh").write_text(sleep)
    devcluster.submit(folder.parent / "urgent.sh", "-p", "urgent", "-N8", "--exclusive")
    finish(process, folder)
    reasons = [event.reason for event in ends(folder)]
    assert reasons == ["signal USR2", "requeued", "requeued", "preempted", "finished"]
    steps = [(event.event, event.step) for event in read_attempts(folder)]
    assert [s for e, s in steps if e == "end"][:-1] == [s for e, s in steps if e == "start"][1:]
    assert samples_by_step(folder) == samples_by_step(reference)
    assert_same_weights(folder, reference)


def test_a_dead_host_costs_a_requeue(devcluster: DevCluster, folder: Path, reference: Path):
    process = launch(folder, "--nodes", "2", *SLURM, env=devcluster.env)
    wait_for(lambda: has_saved(folder, 4), PATIENCE_S, what="first checkpoint")
    devcluster.kill(read_attempts(folder)[0].hosts[1])
    finish(process, folder)
    first, last = ends(folder)
    assert (first.reason, last.restart_count) == ("node failure", 1)
    assert_same_weights(folder, reference)


def test_a_spare_host_takes_the_place_of_a_dead_one(
    devcluster: DevCluster, folder: Path, reference: Path
):
    flags = ("--nodes", "2", "--spare-nodes", "1", *SLURM)
    process = launch(folder, *flags, env=devcluster.env)
    wait_for(lambda: has_saved(folder, 4), PATIENCE_S, what="first checkpoint")
    dead = read_attempts(folder)[0].hosts[1]
    devcluster.kill(dead)
    finish(process, folder)
    first, last = ends(folder)
    assert (first.reason, last.restart_count) == ("node failure", 0)
    assert dead not in last.hosts
    assert_same_weights(folder, reference)


def test_other_numbers_of_hosts_go_on_with_the_same_samples(
    devcluster: DevCluster, folder: Path, reference: Path
):
    process = launch(folder, "--nodes", "2", *SLURM, env=devcluster.env)
    job = job_of(folder)
    wait_for_attempt(folder, 1)
    (folder / "cancel").touch()
    devcluster.run(["scancel", "--signal=USR2", job])
    assert process.wait(timeout=PATIENCE_S) == 1
    assert ends(folder)[-1].reason == "cancelled"
    finish(launch(folder, "--nodes", "4", *SLURM, env=devcluster.env), folder)
    assert [event.world_size for event in ends(folder)] == [2, 4]
    assert samples_by_step(folder) == samples_by_step(reference)
    assert_same_losses(folder, reference)
