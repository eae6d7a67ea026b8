"""One start at a time in a folder; a crash leaves no lock behind."""

import json
import os
import subprocess
import sys
import time

import pytest

from supersam.runs.attempts import end_attempt, start_attempt
from supersam.runs.claim import STALE_S, FolderInUseError, claimed, require_unclaimed
from supersam.runtime.process import start_ticks

HOLDER = """
import sys, time
from pathlib import Path
from supersam.runs.claim import claimed
with claimed(Path(sys.argv[1]), heartbeat_s=10):
    print("held", flush=True)
    sys.stdin.readline()
"""
RANK = """
import sys, time
from pathlib import Path
from supersam.health.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), rank=0, world_size=1, nodes=1, interval_s=60, steps=1):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that holds the folder; a line to its stdin lets it end."""
    begun = []

    def run(code):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], **pipes)
        begun.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield run
    for process in begun:
        process.kill()
        process.wait()


def claim_of(folder, **values):
    (folder / "claim.json").write_text(json.dumps(values))


def test_a_second_start_is_refused_with_the_host_and_process_of_the_first(start, tmp_path):
    holder = start(HOLDER)
    place = f"in use by process {holder.pid} on {os.uname().nodename}"
    with pytest.raises(FolderInUseError, match=place), claimed(tmp_path, heartbeat_s=10):
        pass
    with pytest.raises(FolderInUseError, match=place):
        require_unclaimed(tmp_path)
    holder.communicate("\n")
    with claimed(tmp_path, heartbeat_s=10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_leaves_no_lock(start, tmp_path):
    holder = start(HOLDER)
    holder.kill()
    holder.wait()
    require_unclaimed(tmp_path)
    with claimed(tmp_path, heartbeat_s=10):
        assert json.loads((tmp_path / "claim.json").read_text())["pid"] == os.getpid()


def test_a_process_number_that_is_used_again_holds_nothing(tmp_path):
    ticks = start_ticks(os.getpid()) - 10**6
    claim_of(tmp_path, host=os.uname().nodename, pid=os.getpid(), started_ticks=ticks)
    with claimed(tmp_path, heartbeat_s=10):
        pass


def test_another_host_holds_a_folder_while_it_refreshes_its_claim(tmp_path):
    claim_of(tmp_path, host="elsewhere", pid=7, started_ticks=1)
    with pytest.raises(FolderInUseError, match="process 7 on elsewhere"):
        require_unclaimed(tmp_path)
    then = time.time() - STALE_S - 1
    os.utime(tmp_path / "claim.json", (then, then))
    with claimed(tmp_path, heartbeat_s=10):
        pass


def test_a_damaged_claim_holds_nothing(tmp_path):
    (tmp_path / "claim.json").write_text("")
    with claimed(tmp_path, heartbeat_s=10):
        pass


def test_ranks_that_work_without_a_claim_hold_the_folder_until_their_attempt_ends(start, tmp_path):
    started = start_attempt(tmp_path, hosts=["n1"], world_size=1)
    rank = start(RANK)
    with (
        pytest.raises(FolderInUseError, match=f"process {rank.pid} "),
        claimed(tmp_path, heartbeat_s=10),
    ):
        pass
    end_attempt(tmp_path, started, "failed", 1)
    with claimed(tmp_path, heartbeat_s=10):
        pass
