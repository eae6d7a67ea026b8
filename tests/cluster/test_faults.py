"""What clusters do to a training, on the real cluster. About four minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.handle import DevCluster
from tests.cluster.tiny_run import why
from tests.cluster.training import (
    PATIENCE_S,
    SLURM,
    assert_same_weights,
    ends,
    finish,
    launch,
    printed,
    samples_by_step,
    show_logs,
    wait_for_end,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


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
