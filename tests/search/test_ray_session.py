"""A Ray of a search's own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supersam.config import TrainRun, UserError
from supersam.search.ray.address import RayAddress
from supersam.search.ray.local import read_address, started_ray
from supersam.search.ray.session import joined_ray
from tests.paths import ROOT

ASK = """
import os
from types import SimpleNamespace
from supersam.search.ray.session import local_ray
cluster = SimpleNamespace(evaluators_per_node=1)
with local_ray(SimpleNamespace(cluster=cluster)):
    import ray
    print(ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
"""

FIND = """
import logging, os
os.environ["RAY_NUM_REDIS_GET_RETRIES"] = "1"
from supersam.search.ray.local import read_address, started_ray
from supersam.search.ray.address import RayAddress, ray_environment
from supersam.search.ray.session import joined_ray
logging.basicConfig()
os.environ.update(ray_environment("token", loopback=True))
with started_ray(1, "token") as process:
    there = read_address(process)
    said = iter(["127.0.0.1:1", "127.0.0.1:1"])  # for the token, then to join
    with joined_ray(lambda: RayAddress(next(said, there), "CPU", "token"), nodes=(1, 1)):
        print("joined")
"""

pytestmark = pytest.mark.slow


def test_a_ray_that_does_not_start_is_told_with_its_reason():
    with (
        started_ray(-1, "token") as process,
        pytest.raises(UserError, match="did not start.*-1"),
    ):
        read_address(process)


def test_a_ray_that_does_not_answer_is_told_with_a_remedy(monkeypatch):
    def refuse(address: str, **_: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("supersam.search.ray.session.ray_environment", lambda _: {})
    monkeypatch.setattr("supersam.search.ray.session._ANSWER_S", 0.0)
    deaf = RayAddress("127.0.0.1:1", "ss-tag", "token")
    told = pytest.raises(UserError, match="127.0.0.1:1 does not answer .*the same command goes on")
    with told, joined_ray(lambda: deaf, nodes=(1, 1)):
        pass


def test_a_ray_that_was_started_anew_elsewhere_is_found_there():
    """As where a head takes too long on a busy host: its next start has other ports."""
    done = subprocess.run(
        [sys.executable, "-c", FIND], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.stdout.strip() == "joined", done.stderr
    assert "127.0.0.1:1 does not answer" in done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


def test_evaluators_have_the_priority_of_the_search():
    """Ray's own choice lets whatever else runs on the machine go first."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.stdout.strip() == "0", done.stderr


@contextlib.contextmanager
def endless_search(run: TrainRun, out: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A search, in a group of its own, that has delivered something; its Ray lives in `place`."""
    command = [sys.executable, ROOT / "launch/search.py", "--run", run.folder, "--out", out]
    command += ["--trials", "10000", "--device", "cpu", "--protocol.images", "2"]
    journal = out / "journal.jsonl"
    known = journal.stat().st_size if journal.exists() else 0
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(place)},
        text=True,
        start_new_session=True,
    ) as search:
        try:
            deadline = time.monotonic() + 200
            while not (journal.exists() and journal.stat().st_size > known):
                assert search.poll() is None, search.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield search
        finally:
            search.kill()


def test_ctrl_c_finishes_what_is_under_way_and_says_how_to_go_on(run, tmp_path, place):
    with endless_search(run, tmp_path, place) as search:
        check_end(search, signal.SIGINT)  # a terminal's: to everyone in the group
    check_journal(tmp_path)


def test_a_killed_search_leaves_nothing_running_and_goes_on(run, tmp_path, place):
    with endless_search(run, tmp_path, place) as search:
        assert children_in(place)
        search.kill()
        deadline = time.monotonic() + 60
        while children_in(place) or any(place.glob("ss-[!t]*")):
            assert time.monotonic() < deadline, (children_in(place), list(place.iterdir()))
            time.sleep(0.2)
    with endless_search(run, tmp_path, place) as search:
        check_end(search, signal.SIGTERM)  # that of `timeout`: to everyone in the group
    assert not any(place.iterdir())  # what the killed one left is gone as well
    check_journal(tmp_path)


def check_end(search: subprocess.Popen[str], number: int) -> None:
    os.killpg(search.pid, number)
    said = search.communicate(timeout=90)[1]
    assert search.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "the search was stopped; run the same command to go on" in said


def check_journal(out: Path) -> None:
    lines = (out / "journal.jsonl").read_text().splitlines()
    keys = [json.loads(line)["trial"]["key"] for line in lines]
    assert len(set(keys)) == len(keys) > 0


def children_in(place: Path) -> list[str]:
    """Command lines of processes that have files in that folder."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(place) in line:
            lines.append(line)
    return lines
