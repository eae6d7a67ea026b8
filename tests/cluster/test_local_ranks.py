"""Ranks on one machine: what they say when they fail is kept, and only they hear each other."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from supersam.config import TrainRun, load_run
from supersam.health.records import read_heartbeats, saved_step
from supersam.runs.checkpoint_io import CheckpointManager
from supersam.runtime.distributed import World
from tests.cluster.tiny_run import ENDLESS, Training, why
from tests.paths import ROOT
from tests.patience import PATIENCE_S

CRASH = """\
import sys
from pathlib import Path
from supersam.cluster.crash_log import keep_crash_log
keep_crash_log(Path(sys.argv[1]))
{fault}
"""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise RuntimeError('no such luck')", "RuntimeError: no such luck"),
        ("import ctypes; ctypes.string_at(0)", "Fatal Python error: Segmentation fault"),
    ],
)
def test_a_crash_is_in_the_log_and_on_the_terminal(tmp_path: Path, fault: str, expected: str):
    log = tmp_path / "logs" / "task-00000.log"
    done = subprocess.run(
        [sys.executable, "-c", CRASH.format(fault=fault), log],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode != 0
    assert expected in log.read_text(encoding="utf-8")
    assert expected in done.stderr or "Segmentation" in expected


def listening(pids: set[int]) -> set[str]:
    """Addresses of the TCP sockets on which processes listen, as /proc writes them."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(handle).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1].partition(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_an_early_failure_of_rank_0_is_in_its_log(tmp_path: Path, tasks: int):
    run = Training(tmp_path / "run", "--optim.clip-norm", "0", "--optim.lr", "1e30", tasks=tasks)
    assert run.end() == 2
    log = (run.folder / "logs" / "task-00000.log").read_text(encoding="utf-8")
    assert "error: training diverged" in log
    assert why(run.folder)["kind"] == "mistake"


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_full_disk_is_one_line_whatever_the_number_of_ranks(tmp_path: Path, tasks: int):
    assert Training(tmp_path / "run", tasks=tasks).end() == 0
    saved = tmp_path / "run" / "checkpoints" / "step-000004"
    most = max(file.stat().st_size for file in saved.iterdir()) // 2
    longer = Training(tmp_path / "run", "--optim.steps", "8", tasks=tasks)
    resource.prlimit(longer.process.pid, resource.RLIMIT_FSIZE, (most, most))  # ranks inherit it
    _, err = longer.process.communicate(timeout=PATIENCE_S)
    assert longer.process.returncode == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large; make room" in errors[0]
    assert "Traceback" not in err
    assert saved_step(tmp_path / "run") == 4


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_run_that_is_deleted_while_it_trains_ends_with_one_line(tmp_path: Path, tasks: int):
    run = Training(tmp_path / "run", *ENDLESS, tasks=tasks)
    run.wait_for_step(1)
    run.folder.rename(tmp_path / "moved")  # all at once: nothing is written into its remains
    shutil.rmtree(tmp_path / "moved")
    _, err = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{run.folder} does not exist, or was deleted or moved" in errors[0]
    assert "Traceback" not in err
    assert not run.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_mistake_found_before_the_first_step_leaves_no_folder(tmp_path: Path, tasks: int):
    weights = tmp_path / "junk.pth"
    weights.write_bytes(b"junk")
    run = Training(tmp_path / "run", "--model.checkpoint", str(weights), tasks=tasks)
    assert run.end() == 2
    assert not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "notes.txt").write_text("mine")
    assert Training(run.folder, tasks=tasks).end() == 2  # it is not empty, and stays
    assert (run.folder / "notes.txt").exists()


@pytest.mark.slow
def test_ranks_of_one_machine_listen_on_loopback_only(tmp_path: Path):
    run = Training(tmp_path / "run", *ENDLESS, tasks=2)
    try:
        run.wait_for_step(1)
        addresses = listening({beat.pid for beat in read_heartbeats(run.folder)})
        assert addresses == {"0100007F"}  # 127.0.0.1
    finally:
        run.process.terminate()
    assert run.end() == 128 + signal.SIGTERM
    assert any((run.folder / "checkpoints").iterdir())  # the ranks got it too, and saved


@pytest.mark.slow
def test_ranks_save_and_end_when_their_launcher_is_killed(tmp_path: Path):
    run = Training(tmp_path / "run", *ENDLESS, tasks=2)
    try:
        run.wait_for_step(1)
    finally:
        run.process.kill()
    run.end()  # nobody holds its pipe any more
    assert any((run.folder / "checkpoints").iterdir())
    assert all(beat.has_ended for beat in read_heartbeats(run.folder))


@pytest.mark.slow
def test_what_follows_a_training_here_is_done_here(tmp_path: Path):
    then = ("--then", "evaluate --subnet smallest --images 1 --prompt box")
    run = Training(tmp_path / "run", *then, tasks=2)
    assert run.end() == 0
    assert len(list((run.folder / "results").glob("evaluate-*-step-000004.json"))) == 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_local_ranks_at_once_and_loses_nothing_saved(tmp_path: Path):
    often = ("--checkpoint.every-steps", "2", "--checkpoint.keep-last", "2")
    run = Training(tmp_path / "run", *ENDLESS, *often, tasks=2)
    try:
        run.wait_for_step(3)
        pids = [run.process.pid, *(beat.pid for beat in read_heartbeats(run.folder))]
        saved = saved_step(run.folder)
        for _ in range(2):  # a terminal sends it to all of them
            for pid in pids:
                os.kill(pid, signal.SIGINT)
    finally:
        run.process.terminate()
    assert run.end() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert saved >= 2
    asked = load_run(TrainRun, run.folder / "run.yaml")
    found = CheckpointManager(run.folder, asked.checkpoint, World.single()).latest()
    assert found is not None
    assert found[1].state.step >= saved
    assert not [path for path in run.folder.glob("checkpoints/*") if ".tmp." in path.name]
