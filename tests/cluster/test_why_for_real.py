"""Real runs that fail for real, and the line that says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supersam.health.records import read_heartbeats
from supersam.health.watchdog import STALLED, read_hang_report
from supersam.runtime.process import is_same_process
from tests.cluster.tiny_run import ENDLESS, Training, status, why

pytestmark = pytest.mark.slow
HOST = socket.gethostname()


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Start runs in the test's folder; what is left of them ends with the test."""
    started: list[Training] = []

    def start(*flags: str, tasks: int = 1, folder: Path | None = None) -> Training:
        started.append(Training(folder or tmp_path / "run", *flags, tasks=tasks))
        return started[-1]

    yield start
    for run in started:
        run.process.kill()
        run.process.wait()
        for beat in read_heartbeats(run.folder):
            if is_same_process(beat.pid, beat.started_ticks):
                os.kill(beat.pid, signal.SIGKILL)


def test_a_finished_run_is_told_from_a_stopped_and_resumed_one(train, tmp_path: Path) -> None:
    run = train(*ENDLESS)
    run.wait_for_step(2)
    assert why(run.folder)["kind"] == "running"
    assert status(run.folder, "--cancel").stdout.startswith("asked 1 rank to save and end")
    run.end()
    stopped = why(run.folder)
    assert stopped["kind"] == "cancelled"
    step = run.beat(0).step
    assert stopped["text"] == f"cancelled at step {step}; saved at step {step}"
    (run.folder / "cancel").unlink(missing_ok=True)
    again = train("--optim.steps", str(step + 2), "--checkpoint.every-steps", "100")
    assert again.end() == 0
    finished = why(run.folder)
    assert finished["kind"] == "finished"
    assert finished["text"].startswith(f"finished: {step + 2} steps, mIoU 0.")
    page = status(run.folder).stdout
    assert "goodput" in page
    assert "straggler" not in page
    followed = status(run.folder, "--follow")
    assert f"step {step + 2}  loss:" in followed.stdout
    assert followed.stderr.strip().endswith(finished["text"])
    assert "run  " in status("--root", tmp_path).stdout


def test_a_stopped_rank_ends_the_run_and_is_named(train) -> None:
    run = train(*ENDLESS, "--watchdog.stall-s", "8", tasks=2)
    run.wait_for_step(3)
    os.kill(run.beat(1).pid, signal.SIGSTOP)
    assert run.end() == STALLED
    named = read_hang_report(run.folder)
    assert named is not None
    assert (named.rank, named.host) == (1, HOST)
    said = why(run.folder)
    assert said["kind"] == "stuck"
    assert f"rank 1 on {HOST} silent for" in said["text"]
    assert "is stopped" in said["text"]
    stacks = (run.folder / "logs" / "stacks-00000.txt").read_text(encoding="utf-8")
    # The main thread waits for the other rank: in a step's reduction, or between steps.
    assert "trainer.py" in stacks
    assert "distributed_c10d.py" in stacks


def test_a_killed_rank_is_named_though_the_other_reports_the_broken_connection(train) -> None:
    run = train(*ENDLESS, tasks=2)
    run.wait_for_step(2)
    os.kill(run.beat(1).pid, signal.SIGKILL)
    assert run.end() != 0
    assert run.beat(0).fault is not None
    said = why(run.folder)
    assert said["kind"] == "killed"
    assert said["text"].startswith(f"rank 1 host {HOST} was killed at step ")


def test_an_exception_is_shown_with_rank_file_and_line(train, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = train(*ENDLESS, "--engine.log-sample-ids", tasks=2)
    blocked = run.folder / "logs" / "sample_ids-00001.jsonl"
    run.wait_until(lambda: blocked.is_file(), "the log of sample ids")
    blocked.unlink()
    blocked.mkdir()
    assert run.end() != 0
    said = why(run.folder)
    assert said["kind"] == "exception"
    assert said["text"].startswith(f"exception on rank 1 host {HOST}: IsADirectoryError: ")
    assert " at supersam/training/trainer.py:" in said["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_at_checkpoint_time_is_named(train, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        run = train(tasks=1, folder=disk / "run")
        assert run.end() == 2  # one line, no traceback
        said = why(run.folder)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    assert said["kind"] == "disk full"
    assert "No space left on device" in said["text"]
    assert "nothing was saved" in said["text"]


def test_a_mistake_is_told_in_its_own_words(train, tmp_path: Path) -> None:
    run = train(*ENDLESS)
    run.wait_for_step(1)
    run.process.terminate()
    os.kill(run.beat(0).pid, signal.SIGTERM)
    run.end()
    saved = next((run.folder / "checkpoints").glob("step-*"))
    (saved / "MANIFEST.json").unlink()
    again = train()
    assert again.end() == 2
    said = why(run.folder)
    assert said["kind"] == "mistake"
    assert "no valid one is left in" in said["text"]
