"""What clusters do to a training, on the real cluster. About four minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supersam.health.bad_hosts import count_host_hangs
from supersam.health.records import RankHeartbeat, read_heartbeats, saved_step
from supersam.health.watchdog import read_hang_report
from tests.cluster.handle import RUN_ROOT, DevCluster, wait_for
from tests.cluster.tiny_run import status, why
from tests.cluster.training import (
    ENDLESS,
    PATIENCE_S,
    SLURM,
    assert_same_weights,
    ends,
    finish,
    has_saved,
    job_of,
    launch,
    printed,
    samples_by_step,
    show_logs,
    start_of,
    wait_for_attempt,
    wait_for_end,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

STALL_S = 12
WATCHED = ("--watchdog.heartbeat-s", "1", "--watchdog.stall-s", str(STALL_S))
AWAY_S = 60  # the controller's absence
LIMIT_MIN = 50  # of Slurm's time for a job, unless it is lowered


def stop_rank(cluster: DevCluster, beat: RankHeartbeat) -> None:
    """SIGSTOP, on the rank's own host."""
    cluster.control("shell", beat.host, "--", "kill", "-STOP", str(beat.pid))


def let_others_go_first(cluster: DevCluster, folder: Path) -> None:
    """Ranks that take steps only while Slurm's time passes leave the cores to other tests."""
    for beat in read_heartbeats(folder):
        cluster.control("shell", beat.host, "--", "renice", "-n", "10", "-p", str(beat.pid))


def cancel(folder: Path, env: dict[str, str], attempts: int) -> None:
    """End a run as a user does, and wait for its end."""
    done = status(folder, "--cancel", env=env)
    assert done.returncode == 0, done.stderr
    assert wait_for_end(folder, attempts).reason == "cancelled"


def test_hosts_of_stopped_ranks_are_named_and_left_out(devcluster: DevCluster, folder: Path):
    """First a rank that another one misses, then all of them, which only the supervisor sees."""
    env = devcluster.env
    assert launch(folder, "--nodes", "2", *WATCHED, *ENDLESS, env=env).wait(PATIENCE_S) == 0
    job = job_of(folder)
    wait_for(lambda: has_saved(folder, 20), PATIENCE_S, what="first checkpoint")
    beats = read_heartbeats(folder)
    stopped = time.monotonic()
    stop_rank(devcluster, beats[1])
    first = wait_for_end(folder, 1)
    slowest = max(beat.median_step_s or 0.0 for beat in beats)
    assert time.monotonic() - stopped < 2 * max(STALL_S, 10 * slowest) + 60
    assert (first.reason, first.step) == ("stuck", saved_step(folder))
    again = start_of(folder, 2)
    assert (again.step, again.restart_count) == (first.step, 1)  # nobody waited for the job
    assert beats[1].host not in again.hosts
    assert devcluster.job(job)["ExcNodeList"] == beats[1].host
    assert count_host_hangs(folder) == {beats[1].host: 1}

    wait_for_attempt(folder, 2)
    beats = read_heartbeats(folder)
    for beat in beats:
        stop_rank(devcluster, beat)
    assert wait_for_end(folder, 2).reason == "stuck"
    blamed = read_hang_report(folder)
    assert blamed is not None
    assert blamed.host in again.hosts
    assert f"rank {blamed.rank} on {blamed.host} gave no sign of life for" in blamed.reason
    third = start_of(folder, 3)
    assert blamed.host not in third.hosts
    assert "hung hosts   " in status(folder, env=env).stdout
    wait_for_attempt(folder, 3)
    cancel(folder, env, 3)


def test_a_full_disk_and_a_damaged_checkpoint_cost_steps_but_never_all(
    devcluster: DevCluster, small_disk: Path, reference: Path
):
    folder, filler = small_disk / "run", small_disk / "filler"
    newest = sorted((reference / "checkpoints").glob("step-*"))[-1]
    bytes_each = sum(file.stat().st_size for file in newest.iterdir())
    room = int(2.5 * bytes_each)  # for the checkpoints of steps 4 and 8
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    process = launch(folder, "--nodes", "2", *SLURM, env=devcluster.env)
    try:
        full = wait_for_end(folder, 1)
        weights = next((folder / "checkpoints" / "step-000008").glob("weights-*"))
        with weights.open("r+b") as file:  # the next attempt is still importing
            file.seek(-100, os.SEEK_END)
            file.write(b"\xff" * 50)
        filler.unlink()
        assert (full.reason, full.step) == ("failed", 8)
        finish(process, folder)
        log = (folder / "logs" / "task-00000.attempt-001.log").read_text()
        assert "No space left on device" in log
        log = (folder / "logs" / "task-00000.attempt-002.log").read_text()
        assert "passing over a damaged checkpoint" in log
        assert "resumed at step 4 from " in log
        assert_same_weights(folder, reference)

        shutil.rmtree(folder / "checkpoints")
        words = ("--optim.steps", "24", "--nodes", "1", *SLURM)
        assert launch(folder, *words, env=devcluster.env).wait(PATIENCE_S) == 2
        assert "saved a checkpoint at step 20, and no valid one is left in" in printed(folder)
        assert max(samples_by_step(folder)) == 19  # steps begin at 0: none was taken anew
        assert why(folder, devcluster.env)["kind"] == "mistake"
    finally:
        process.kill()
        show_logs(folder)
        for path in small_disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_out_of_memory_gives_up_after_three_attempts_and_says_why(
    devcluster: DevCluster, folder: Path
):
    imports = "import deepspeed, supersam.training.session; print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", imports], capture_output=True, text=True, check=True, timeout=300
    )
    peak_kib = int(done.stdout.split("VmPeak:")[1].split()[0])
    limit = peak_kib * 1024 + 2**30  # Slurm hands this shell's limits on to the ranks
    huge = ("--model.embed-dim", "2048", "--model.depth", "32", "--model.num-heads", "32")
    words = ("--nodes", "1", *SLURM, *huge, "--space.removable", "0")
    process = launch(folder, *words, env=devcluster.env, before=("prlimit", f"--as={limit}"))
    assert process.wait(timeout=PATIENCE_S) == 1
    assert [event.reason for event in ends(folder)] == ["failed"] * 3
    assert "error: 3 attempts without a new checkpoint, the last because: failed" in printed(folder)
    said = why(folder, devcluster.env)
    assert said["kind"] == "out of memory"
    assert said["text"].startswith(f"out of memory on rank 0 host {ends(folder)[-1].hosts[0]}, ")
    assert " at supersam/" in said["text"]
    assert "; nothing was saved" in said["text"]


def test_two_runs_on_the_same_hosts_a_silent_controller_and_a_time_limit(
    devcluster: DevCluster, tmp_path: Path
):
    env = devcluster.env
    limited, other = tmp_path / "limited", tmp_path / "other"
    place = ("--nodes", "2", "--sbatch", "nodelist=n1,n2", *ENDLESS)
    runs = (limited, other)
    try:
        limit = ("--time", str(LIMIT_MIN), "--signal-delay-s", "110")
        for folder in runs:
            assert launch(folder, *place, *limit, env=env).wait(PATIENCE_S) == 0
        for folder in runs:
            wait_for_attempt(folder, 1)
            let_others_go_first(devcluster, folder)
        assert [set(start_of(folder, 1).hosts) for folder in runs] == [{"n1", "n2"}] * 2

        began, saved = start_of(other, 1).time, RUN_ROOT / devcluster.name / "state" / "job_state"
        wait_for(lambda: saved.stat().st_mtime > began, 60, what="slurmctld saving its state")
        devcluster.kill("ctl")
        back = time.monotonic() + AWAY_S
        before = {folder: max(samples_by_step(folder)) for folder in runs}
        wait_for(lambda: time.monotonic() > back, AWAY_S + 5, what="the minute")
        for folder in runs:
            assert max(samples_by_step(folder)) > before[folder] + 2
        devcluster.start("ctl")

        job = job_of(limited)
        devcluster.end_time_soon(job)
        first = wait_for_end(limited, 1)
        assert first.reason == "time limit"
        again = start_of(limited, 2)
        devcluster.set_limit(job, LIMIT_MIN)
        assert (again.step, again.restart_count) == (first.step, 1)
        assert first.step > 0
        wait_for_attempt(limited, 2)
        cancel(limited, env, 2)
        cancel(other, env, 1)
        ours, theirs = samples_by_step(limited), samples_by_step(other)
        common = range(min(max(ours), max(theirs)))  # the last may be half written
        assert [ours[step] for step in common] == [theirs[step] for step in common]
        assert "cancelled at step" in why(limited, env)["text"]
    finally:
        for folder in runs:
            show_logs(folder)
