"""TensorBoard answers on loopback only, says how to reach it, and ends with Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from supersam.status.tensorboard import host_name, link_boards, user_name
from tests.paths import ROOT
from tests.patience import PATIENCE_S


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)


def start(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / "monitor.py", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin_curves(folder: Path) -> None:
    writer = EventFileWriter(str(folder))
    value = Summary.Value(tag="val/miou/largest", simple_value=0.5)
    writer.add_event(Event(step=1, wall_time=1.0, summary=Summary(value=[value])))
    writer.close()


def read_runs(direct: urllib.request.OpenerDirector, port: int) -> list[str]:
    with direct.open(f"http://127.0.0.1:{port}/data/runs", timeout=60) as page:
        return sorted(json.loads(page.read()))


def test_links_are_named_by_run_and_search_and_made_once(tmp_path: Path) -> None:
    logdir, links = tmp_path / "runs", tmp_path / "links"
    links.mkdir()
    for place in ("a/tensorboard", "a/results/sweep/one/tensorboard", "a/data/tensorboard", "b"):
        begin_curves(logdir / place)
    for _ in range(2):
        link_boards(logdir, links)
    assert sorted(link.name for link in links.iterdir()) == ["a", "a sweep one", "b"]
    link_boards(logdir / "a", links)
    assert (links / "sweep one").resolve() == logdir / "a/results/sweep/one/tensorboard"


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A monitor that answers, its port, and what it said; proxies do not reach this host."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    begin_curves(tmp_path / "demo" / "tensorboard")
    begin_curves(tmp_path / "demo" / "results" / "search" / "tensorboard")
    process = start("--logdir", tmp_path)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_S)[0], "it never said a word"
        said = "".join(process.stdout.readline() for _ in range(4))
        tunnel = re.search(r"ssh -N -L (\d+):localhost:\1 \S+@(\S+)", said)
        assert tunnel is not None
        yield process, int(tunnel.group(1)), said
    finally:
        process.kill()
        process.wait()


def test_it_serves_on_loopback_and_ends_with_ctrl_c(served, tmp_path: Path) -> None:
    process, port, said = served
    assert f"@{host_name()}" in said
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    wait_until(lambda: read_runs(direct, port) == ["demo", "demo search"], "the runs' names")
    begin_curves(tmp_path / "later" / "tensorboard")
    wait_until(lambda: "later" in read_runs(direct, port), "a run that began while it served")
    assert "?pinnedCards=%5B%7B%22plugin%22:" in said
    assert listening_addresses(port) == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Traceback" not in errors
    wait_until(lambda: listening_addresses(port) == set(), "the port is free", 30)


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # as with docker run --user
    monkeypatch.delenv("USER", raising=False)
    assert user_name() == str(2**31 - 7)


@pytest.mark.parametrize(
    ("full", "name"),
    [
        ("n1.site.org", "n1.site.org"),
        ("localhost", "n1"),
        ("localhost.localdomain", "n1"),
        ("localhost6", "n1"),
    ],
)
def test_the_way_here_is_never_to_localhost(monkeypatch, full: str, name: str) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: full)
    monkeypatch.setattr(socket, "gethostname", lambda: "n1")
    assert host_name() == name


def test_tensorboard_does_not_outlive_a_killed_monitor(served) -> None:
    process, port, _ = served
    process.kill()
    process.wait()
    wait_until(lambda: listening_addresses(port) == set(), "TensorBoard ended", 60)


def listening_addresses(port: int) -> set[str]:
    """Local addresses of the TCP sockets that listen on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, hexport = local.partition(":")
            if state == "0A" and int(hexport, 16) == port:
                octets = reversed(bytes.fromhex(address)) if table == "tcp" else [0]
                found.add(".".join(str(octet) for octet in octets))
    return found


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path) -> None:
    absent = start("--logdir", tmp_path / "absent")
    _, errors = absent.communicate(timeout=PATIENCE_S)
    expected = (
        f"error: --logdir {tmp_path / 'absent'} is not a folder; name a run's folder, or runs"
    )
    assert (absent.returncode, errors.strip()) == (2, expected)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = start("--logdir", tmp_path, "--port", str(port))
        _, errors = taken.communicate(timeout=PATIENCE_S)
    assert taken.returncode == 2
    assert f"port {port} cannot be used (Address already in use)" in errors
