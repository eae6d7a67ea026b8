"""`launch/monitor.py`: TensorBoard on this host's loopback, and how to reach it from elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path

from supersam.cluster.rendezvous import free_port
from supersam.config import MonitorRun, UserError
from supersam.config.errors import print_error
from supersam.config.files import (
    CHECKPOINTS,
    CODE,
    DATA,
    FIGURES,
    HEARTBEATS,
    JOB_FOLDER,
    LOGS,
    RESULTS,
    TENSORBOARD,
)
from supersam.runtime.process import end_with_parent
from supersam.runtime.scratch import scratch_folder
from supersam.runtime.waiting import wait_until

_FAILURE = 1
_START_S = 120.0
_END_S = 10.0
_LOOPBACK = "127.0.0.1"
_LINK_S = 5.0
_WITHOUT_CURVES = (CHECKPOINTS, DATA, LOGS, HEARTBEATS, FIGURES, JOB_FOLDER, CODE)
_SHOWN_FIRST = ("val/miou/largest", "val/miou/smallest")


def monitor(options: MonitorRun) -> int:
    """Serve until Ctrl-C. Returns the exit code: 0 when it was asked to end."""
    try:
        port = _check(options)
    except UserError as fault:
        return print_error(fault)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with scratch_folder("ss-board-") as links:
        link_boards(options.logdir, links)
        server = _start(links, port)
        try:
            _wait_until_served(server, port)
            print(_instructions(options.logdir, port), flush=True)
            while server.poll() is None:
                link_boards(options.logdir, links)  # runs may begin at any time
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(_LINK_S)
            print_error(f"TensorBoard ended by itself with code {server.returncode}")
            return _FAILURE
        except TimeoutError as fault:
            print_error(fault)
            return _FAILURE
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def link_boards(logdir: Path, links: Path) -> None:
    """Let `links` hold a link to each folder of curves below `logdir`, named by what it is of.

    TensorBoard takes that for the name: `demo`, `demo search`, not `demo/tensorboard`.
    """
    for folder, folders, files in os.walk(logdir):
        folders[:] = [name for name in folders if name not in _WITHOUT_CURVES]
        if not any(name.startswith("events.out.tfevents") for name in files):
            continue
        parts = Path(folder).relative_to(logdir).parts
        named = [part for part in parts if part not in (TENSORBOARD, RESULTS)]
        link = links / (" ".join(named) or logdir.resolve().name)
        if not link.is_symlink():
            link.symlink_to(Path(folder).resolve())


def _start(links: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tensorboard.main",
            f"--logdir={links}",
            f"--port={port}",
            f"--host={_LOOPBACK}",
            "--reload_multifile=true",
        ],
        start_new_session=True,  # Ctrl-C reaches this process, which ends the server
        preexec_fn=partial(end_with_parent, os.getpid()),
    )


def _check(options: MonitorRun) -> int:
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("tensorboard is not installed; run `pip install tensorboard`")
    if not options.logdir.is_dir():
        raise UserError(f"--logdir {options.logdir} is not a folder; name a run's folder, or runs")
    if options.port == 0:
        return free_port(_LOOPBACK)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, options.port))
        except OSError as fault:
            raise UserError(
                f"port {options.port} cannot be used ({fault.strerror}); leave out --port to get a "
                "free one"
            ) from fault
    return options.port


def _wait_until_served(server: subprocess.Popen[bytes], port: int) -> None:
    # Without the proxies of the environment: they would be asked for a port of this host.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers_or_ended() -> bool:
        if server.poll() is not None:
            return True
        try:
            direct.open(f"http://{_LOOPBACK}:{port}/", timeout=5).close()
        except OSError:  # urllib's own errors are some
            return False
        return True

    if not wait_until(answers_or_ended, timeout_s=_START_S):
        raise TimeoutError(f"TensorBoard did not answer within {_START_S:g} s")


def _instructions(logdir: Path, port: int) -> str:
    address = f"http://localhost:{port}/"
    login = shlex.quote(f"{user_name()}@{host_name()}")
    return (
        f"TensorBoard of {logdir} at {address}\n"
        f"from your own computer:  ssh -N -L {port}:localhost:{port} {login}\n"
        f"then open {address} there; Ctrl-C ends it\n"
        f"with validation on top: {address}?{pinned_query()}#timeseries"
    )


def pinned_query() -> str:
    """Return the part of TensorBoard's address that puts the validation above the other curves."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in _SHOWN_FIRST]
    pinned = json.dumps(cards, separators=(",", ":"))
    return urllib.parse.urlencode({"pinnedCards": pinned}, safe=":,")


def user_name() -> str:
    """The user's name; the number where the system has no name for it, as in some containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER") or str(os.getuid())


def host_name() -> str:
    """This host's name for others: the full one, unless that is what every host calls itself."""
    full = socket.getfqdn()
    return socket.gethostname() if full.partition(".")[0].startswith("localhost") else full


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_END_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
