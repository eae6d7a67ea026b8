"""A Ray of a search's own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
from supersam.search.ray.address import RayAddress, ray_environment
from supersam.search.ray.local import read_address, started_ray
from supersam.search.ray.session import joined_ray
from tests.cluster.gated_search import GATE
from tests.paths import ROOT
from tests.patience import PATIENCE_S

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

LATE = """
import sys
import ray._private.node as node, ray._private.services as services

real, starts = services.get_node, []

def late_at_first(address, name):
    if name not in starts:
        starts.append(name)
    if len(starts) == 1:
        node.time = LongAgo()  # Ray's limit is over at once
        raise RuntimeError("not there yet")
    node.time = real_time
    return real(address, name)

class LongAgo:
    now = 0
    def __getattr__(self, name):
        return getattr(real_time, name)
    def monotonic(self):
        LongAgo.now += 1000
        return LongAgo.now

real_time, services.get_node = node.time, late_at_first
from supersam.search.ray.local import main
code = main()
print("starts", len(starts))
sys.exit(code)
"""

pytestmark = pytest.mark.slow


def test_a_ray_that_does_not_start_is_told_with_its_reason():
    with (
        started_ray(-1, "token") as process,
        pytest.raises(UserError, match="did not start.*-1"),
    ):
        read_address(process)


def test_a_ray_that_does_not_start_is_silent_where_its_search_was_killed():
    process = subprocess.Popen(
        [sys.executable, "-m", "supersam.search.ray.local", "-1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ray_environment("token", loopback=True),
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 1


def test_a_ray_that_starts_too_slowly_for_its_own_limit_is_started_again(place):
    """Ray waits 30 s for itself, which is too short on a busy machine."""
    environment = os.environ | ray_environment("token", loopback=True) | {"TMPDIR": str(place)}
    with subprocess.Popen(
        [sys.executable, "-c", LATE, "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert read_address(process).startswith("127.0.0.1:")
        said = process.communicate(timeout=PATIENCE_S)[0]  # its standard input ends
    assert (process.returncode, said.split()) == (0, ["starts", "2"])
    assert children_in(place) == []


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
        [sys.executable, "-c", FIND],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
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
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "0", done.stderr


def gated_code(place: Path) -> Path:
    """A copy of the project whose evaluators wait for the search's gate."""
    code = place / "code"
    for part in ("supersam", "launch", "configs"):
        shutil.copytree(ROOT / part, code / part, dirs_exist_ok=True)
    with (code / "supersam/search/evaluator.py").open("a", encoding="utf-8") as file:
        file.write(GATE)
    return code


def open_gate(out: Path, trials: int) -> None:
    """Let chunks begin while the journal of the search in `out` has fewer trials."""
    (out / "gate.partial").write_text(str(trials))
    (out / "gate.partial").rename(out / "gate")


def trials_in(journal: Path) -> int:
    """Searched subnets of a journal, the references not counted."""
    return journal.read_bytes().count(b'"stage": "search"') if journal.exists() else 0


@contextlib.contextmanager
def endless_search(run: TrainRun, out: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A search, in a group of its own, that has delivered something; its Ray lives in `place`.

    It is held where it is: after each delivery its evaluators wait for the gate.
    """
    code = gated_code(place)
    command = [sys.executable, code / "launch/search.py", "--run", run.folder, "--out", out]
    command += ["--trials", "100", "--device", "cpu", "--protocol.images", "2"]
    journal = out / "journal.jsonl"
    known = journal.stat().st_size if journal.exists() else 0
    begun = trials_in(journal)
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(place), "PYTHONPATH": str(code)},
        text=True,
        start_new_session=True,
    ) as search:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (journal.exists() and journal.stat().st_size > known):
                assert search.poll() is None, search.stderr.read()
                assert time.monotonic() < deadline
                if out.is_dir() and any(out.iterdir()):  # it takes no folder of something else
                    open_gate(out, begun + 1)
                time.sleep(0.2)
            yield search
        finally:
            search.kill()


def test_ctrl_c_finishes_what_is_under_way_and_says_how_to_go_on(run, tmp_path, place):
    with endless_search(run, tmp_path, place) as search:
        check_end(search, signal.SIGINT, tmp_path)  # a terminal's: to everyone in the group
    check_journal(tmp_path)


def test_a_killed_search_leaves_nothing_running_and_goes_on(run, tmp_path, place):
    with endless_search(run, tmp_path, place) as search:
        assert children_in(place)
        search.kill()
        deadline = time.monotonic() + PATIENCE_S
        while children_in(place) or any(place.glob("ss-[!t]*")):
            assert time.monotonic() < deadline, (children_in(place), list(place.iterdir()))
            time.sleep(0.2)
    with endless_search(run, tmp_path, place) as search:
        check_end(search, signal.SIGTERM, tmp_path)  # that of `timeout`: to everyone in the group
    assert not any(place.glob("ss-*"))  # what the killed one left is gone as well
    check_journal(tmp_path)


def check_end(search: subprocess.Popen[str], number: int, out: Path) -> None:
    os.killpg(search.pid, number)
    open_gate(out, 100)  # what is under way ends; nothing else is begun
    said = search.communicate(timeout=PATIENCE_S)[1]
    assert search.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "the search was stopped; run the same command to go on" in said


def check_journal(out: Path) -> None:
    lines = (out / "journal.jsonl").read_text().splitlines()
    keys = [json.loads(line)["trial"]["key"] for line in lines]
    assert len(set(keys)) == len(keys)
    assert 0 < len(keys) < 100


def children_in(place: Path) -> list[str]:
    """Command lines of processes that have files in that folder."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(place) in line:
            lines.append(line)
    return lines
