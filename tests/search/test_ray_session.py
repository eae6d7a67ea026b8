"""A Ray of a search's own, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supersam.config import TrainRun
from tests.paths import ROOT

ASK = """
import os
from types import SimpleNamespace
from supersam.search.ray_session import local_ray
cluster = SimpleNamespace(evaluators_per_node=1)
with local_ray(SimpleNamespace(cluster=cluster)):
    import ray
    print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
"""

pytestmark = pytest.mark.slow


def test_evaluators_have_the_priority_of_the_search():
    """Ray's own choice lets whatever else runs on the machine go first."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.stdout.strip() == "0", done.stderr


def test_ctrl_c_finishes_what_is_under_way_and_says_how_to_go_on(run: TrainRun, tmp_path: Path):
    command = [sys.executable, ROOT / "launch/search.py", "--run", run.folder, "--out", tmp_path]
    command += ["--trials", "10000", "--device", "cpu", "--protocol.images", "2"]
    search = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "journal.jsonl"
    try:
        deadline = time.monotonic() + 200
        while not (journal.exists() and journal.stat().st_size > 0):
            assert search.poll() is None, search.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(search.pid, signal.SIGINT)  # a terminal's: to everyone in the group
        said = search.communicate(timeout=90)[1]
    finally:
        search.kill()
    assert search.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said
    assert "the search was stopped; run the same command to go on" in said
    keys = [json.loads(line)["trial"]["key"] for line in journal.read_text().splitlines()]
    assert len(set(keys)) == len(keys) > 0
