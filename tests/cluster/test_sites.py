"""What sites differ in, on the real cluster: GPUs, accounting, plain sbatch, unshared folders."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path

import pytest

from supersam.cluster.slurm.jobs import JobQueue
from tests.cluster.handle import PROJECT, DevCluster, wait_for
from tests.cluster.tiny_run import status, why
from tests.cluster.training import (
    PATIENCE_S,
    QUIET,
    SLURM,
    STEPS,
    ends,
    finish,
    job_of,
    launch,
    printed,
    tiny_config,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_each_rank_sees_the_gpus_that_were_asked_for(gpu_cluster: DevCluster, folder: Path):
    """Stand-ins: what Slurm is asked for and what a rank is given, not what a GPU computes."""
    words = ("--nodes", "1", "--gpus-per-node", "2", "--optim.steps", "4", *SLURM)
    finish(launch(folder, *words, env=gpu_cluster.env), folder)
    job = gpu_cluster.job(job_of(folder))
    assert job["TresPerNode"] == "gres:gpu:2"
    for rank in range(2):
        log = folder / "logs" / f"task-{rank:05d}.attempt-001.log"
        assert f"rank {rank} on n1, " in log.read_text()
        assert "GPUs 0,1, " in log.read_text()


def test_a_rank_that_the_kernel_kills_for_its_memory_is_named(
    memory_cluster: DevCluster, folder: Path
):
    huge = ("--model.embed-dim", "2048", "--model.depth", "32", "--model.num-heads", "32")
    words = ("--nodes", "1", "--mem", "1500M", "--max-attempts-without-progress", "1", *SLURM)
    process = launch(folder, *words, *huge, "--space.removable", "0", env=memory_cluster.env)
    assert process.wait(timeout=PATIENCE_S) == 1
    (end,) = ends(folder)
    assert (end.reason, end.step) == ("failed", 0)
    said = why(folder, memory_cluster.env)
    assert said["kind"] == "out of memory"
    assert said["text"].startswith("out of memory on rank 0 host n1: ")
    assert "nothing was saved" in said["text"]


def test_the_plain_script_trains_and_leaves_no_file_that_others_can_write(
    devcluster: DevCluster, folder: Path
):
    script = PROJECT / "slurm" / "train.sbatch"
    words = ["--config", tiny_config(folder), "--run", folder, "--signal-delay-s", "60"]
    env = [f"{name}={value}" for name, value in (QUIET | {"PYTHON": sys.executable}).items()]
    options = ["--nodes=2", "--time=10", f"--chdir={PROJECT}", f"--output={folder}.log"]
    command = ["env", *env, "sbatch", "--parsable", *options, script, *words]
    job = devcluster.run(["sh", "-c", 'umask 0; exec "$@"', "sh", *command]).strip()

    def over() -> bool:
        return devcluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    wait_for(over, PATIENCE_S, what="the job's end")
    assert devcluster.job(job)["JobState"] == "COMPLETED", printed(folder)
    (end,) = ends(folder)
    assert (end.reason, end.step, end.world_size, end.job_id) == ("finished", STEPS, 2, job)
    assert why(folder, devcluster.env)["kind"] == "finished"
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert len(files) > 20
    assert [path for path in files if path.stat().st_mode & stat.S_IWOTH] == []


def test_a_folder_that_a_node_does_not_share_is_an_error_that_names_the_node(
    devcluster: DevCluster, folder: Path
):
    folder.mkdir()
    on_n2 = ("shell", "n2", "--")
    devcluster.control(*on_n2, "mount", "-t", "tmpfs", "tmpfs", str(folder))
    try:
        words = ("--nodes", "2", "--sbatch", "nodelist=n1,n2", *SLURM)
        assert launch(folder, *words, env=devcluster.env).wait(PATIENCE_S) != 0
    finally:
        devcluster.control(*on_n2, "umount", str(folder))
    expected = f"n2 cannot read what n1 writes to {folder}"
    assert f"error: {expected}" in printed(folder)
    said = why(folder, devcluster.env)
    assert (said["kind"], expected in said["text"]) == ("mistake", True)


def test_accounting_answers_for_a_job_that_slurm_forgot(
    accounting_cluster: DevCluster,
    failed_job: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.env["SLURM_CONF"])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text("optim: {steps: 9}\n", encoding="utf-8")
    (folder / "job.json").write_text(json.dumps({"job_id": failed_job, "submitted": time.time()}))

    def forgotten() -> bool:
        listing = ["squeue", "--noheader", "--states=all", "--format=%i"]
        return failed_job not in accounting_cluster.run(listing).split()

    wait_for(forgotten, 180, what="slurmctld forgetting the job")
    assert JobQueue().jobs([failed_job])[failed_job].state == "FAILED"
    detail = json.loads(status(folder, "--json", env=accounting_cluster.env).stdout)
    assert detail["job"]["state"] == "FAILED"
    assert "Slurm says FAILED" in why(folder, accounting_cluster.env)["text"]
