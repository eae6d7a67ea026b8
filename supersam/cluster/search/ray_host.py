"""One host of a search's Ray, as a task of a Slurm step: its ports, its folder, its start and end.

`python -m supersam.cluster.search.ray_host FILE HEAD` runs on every host of the step; the host
named HEAD starts the head and writes to FILE where it is, the others join it. The Ray
ends when FILE is removed; nothing of it is left on the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from supersam.config import UserError
from supersam.config.errors import print_error
from supersam.runtime.atomic import atomic_file
from supersam.runtime.scratch import scratch_folder
from supersam.runtime.waiting import wait_until
from supersam.search.ray.address import (
    OBJECT_STORE_BYTES,
    RayAddress,
    ray_environment,
    require_short,
)

DEADLINE_S = 300.0
"""Seconds for the head to appear: a slow host may still read Python from a cold file system."""
_FIRST_PORT, _LAST_PORT = 20000, 32000  # below the ports that Linux gives to outgoing connections
_BLOCKS = 50
_STARTS = 6  # Ray gives a host that is busy 30 s to start, and fails then
_END_S = 4.0
_POLL_S = 0.2
_SERVICES = (
    "--port",
    "--ray-client-server-port",  # which is not used; by default every head wants port 10001
    "--node-manager-port",
    "--object-manager-port",
    "--runtime-env-agent-port",
    "--dashboard-agent-grpc-port",
    "--dashboard-agent-listen-port",
    "--metrics-export-port",
)
_OF_HEAD = 2
"""How many of them, the first ones, are the head's alone."""
_WORKER_PORTS = 8
"""Ports besides one for each core: Ray starts more workers than it uses at a time."""


def choose_ports(count: int, *, host: str, key: str) -> list[int]:
    """Choose neighbouring ports of this machine that are all free; equal keys, the same choice.

    Raises UserError where no block of that many is found.
    """
    span = _LAST_PORT - _FIRST_PORT - count
    for block in range(_BLOCKS):
        digest = hashlib.sha256(f"{key}/{block}".encode()).digest()
        first = _FIRST_PORT + int.from_bytes(digest[:8], "big") % span
        ports = list(range(first, first + count))
        if all(_is_free(host, port) for port in ports):
            return ports
    raise UserError(
        f"{socket.gethostname()} has no {count} neighbouring free ports between {_FIRST_PORT} and "
        f"{_LAST_PORT}; leave it out with --exclude {socket.gethostname()}"
    )


def ray_command(
    ports: Sequence[int], *, ip: str, folder: str, tag: str, head: str | None
) -> list[str]:
    """Return the `ray start` of this host. head: host:port to join; None to be the head."""
    cores, gpus = len(os.sched_getaffinity(0)), _visible_gpus()
    services = [f"{name}={port}" for name, port in zip(_SERVICES, ports, strict=False)]
    role = ["--head", *services[:_OF_HEAD], "--include-dashboard=false"]
    if head is not None:
        role = [f"--address={head}"]
    workers = ",".join(str(port) for port in ports[len(_SERVICES) :])
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *role,
        *services[_OF_HEAD:],
        f"--worker-port-list={workers}",
        f"--node-ip-address={ip}",
        f"--num-cpus={cores}",
        f"--num-gpus={gpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}",
        f"--resources={json.dumps({tag: 1})}",
    ]


def read_head_address(address_file: Path, *, deadline_s: float = DEADLINE_S) -> RayAddress:
    """Return where the head is, once it listens. Raises UserError after `deadline_s`."""

    def look() -> RayAddress | None:
        if not _is_there(address_file):
            return None
        found = RayAddress(**json.loads(address_file.read_text(encoding="utf-8")))
        return found if _listens(found.address) else None

    found = wait_until(look, timeout_s=deadline_s, poll_s=_POLL_S)
    if found is None:
        raise UserError(
            f"the head of the search's Ray did not appear within {deadline_s:g} s "
            f"({address_file}); see its log, and whether all nodes share this folder"
        )
    return found


def serve(address_file: Path, *, is_head: bool, key: str) -> int:
    """Start Ray on this host and stay until it ends or this task is told to end."""
    ip = socket.gethostbyname(socket.gethostname())
    tag = f"ss-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    cores = len(os.sched_getaffinity(0))
    token = secrets.token_hex(16)  # of all starts: a host that joins reads it once
    with _short_folder() as folder, _ending_on_signals(), _removed(address_file, is_head):
        for start in range(_STARTS):  # a port can be taken between the test and the start
            count = len(_SERVICES) + cores + _WORKER_PORTS
            ports = choose_ports(count, host=ip, key=f"{key}/{start}")
            if is_head:
                found = RayAddress(f"{ip}:{ports[0]}", tag, token)
                write_head_address(address_file, found)
            else:
                found = read_head_address(address_file)
            command = ray_command(
                ports, ip=ip, folder=folder, tag=tag, head=None if is_head else found.address
            )
            print(f"{socket.gethostname()}: ports {ports[0]}-{ports[-1]}, folder {folder}")
            code = _run_while(command, ray_environment(found.token), address_file=address_file)
            if code == 0:
                return 0
            print(f"{socket.gethostname()}: ray start ended with {code}", file=sys.stderr)
        return 1


def _run_while(command: Sequence[str], environment: dict[str, str], *, address_file: Path) -> int:
    """Run until `address_file` is gone, and leave no process behind. Returns the exit code."""
    child = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
    try:
        while child.poll() is None:
            if not _is_there(address_file):
                child.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_END_S)
                return 0
            time.sleep(_POLL_S)
        return child.returncode
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _is_there(address_file: Path) -> bool:
    with contextlib.suppress(OSError):
        return address_file.name in os.listdir(address_file.parent)  # makes NFS look again
    return False


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """Yield a folder of this host's own for sockets and logs, removed at the end.

    One that a power cut left behind goes with the next search on the host.
    """
    with scratch_folder("ss-") as folder:
        require_short(str(folder))
        yield str(folder)


@contextlib.contextmanager
def _removed(address_file: Path, is_head: bool) -> Iterator[None]:
    """After the head's block, remove the file with its token, also where a signal ends it."""
    try:
        yield
    finally:
        if is_head:
            address_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Within the block TERM and INT end this process in order; USR2 is the driver's: ignored."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    yield


def write_head_address(address_file: Path, found: RayAddress) -> None:
    """Write where the head is, readable by this user alone: the file holds the token."""
    address_file.parent.mkdir(mode=0o700, exist_ok=True)
    with atomic_file(address_file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(asdict(found)), encoding="utf-8")


def _visible_gpus() -> int:
    """Count the GPUs that Slurm gave this task."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return len([name for name in visible.split(",") if name.strip()])


def _is_free(host: str, port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except OSError:
        return False


def main(address_file: Path, head: str) -> int:
    """Serve as the host that Slurm says this is. Returns the exit code."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    key = "-".join(os.environ.get(name, "0") for name in names)
    is_head = os.environ.get("SLURMD_NODENAME", socket.gethostname()) == head
    try:
        return serve(address_file, is_head=is_head, key=key)
    except UserError as fault:
        return print_error(fault)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
