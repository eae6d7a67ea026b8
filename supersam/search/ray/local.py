"""A Ray on this machine's loopback that lives as long as the process that started it.

python -m supersam.search.ray.local CPUS prints where it is and ends with its standard input, so
also when its owner is killed; nothing of it is left then. In a session of its own, signals that the
owner's process group gets leave evaluators alone: Ctrl-C, or the TERM of `timeout`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from supersam.config import UserError
from supersam.runtime.process import outlive_readers
from supersam.runtime.scratch import scratch_folder
from supersam.search.ray.address import OBJECT_STORE_BYTES, ray_environment, require_short

_PREFIX = "ss-"
_SAYS, _FAILS = "ray at ", "no ray: "
_END_S = 20.0
_STARTS = 4
REMEDY = (
    "where other work keeps the cores or the memory, the same command goes on later; "
    "--cluster inline searches without Ray"
)
"""What a user can do where a Ray of this machine does not start or answer."""


@contextlib.contextmanager
def started_ray(cpus: int, token: str) -> Iterator[subprocess.Popen[str]]:
    """Start it in a process of its own and, after the block, end it; see `read_address`.

    Raises UserError where the system's temporary folder has too long a name.
    """
    require_short(f"{tempfile.gettempdir()}/{_PREFIX}{'x' * 8}")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ray_environment(token, loopback=True)},
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def read_address(process: subprocess.Popen[str]) -> str:
    """host:port, as soon as the Ray that this process starts is there. Raises UserError."""
    assert process.stdout is not None
    reason = None
    for line in process.stdout:
        if line.startswith(_SAYS):
            return line.removeprefix(_SAYS).strip()
        if line.startswith(_FAILS):
            reason = line.removeprefix(_FAILS).strip()
    raise UserError(
        f"Ray did not start on this machine ({reason or f'exit code {process.wait()}'}); {REMEDY}"
    )


def main() -> int:
    """Start, say where or why not, wait for the end of standard input, end. Returns the exit code.

    Whoever started it tells the fault: no traceback here.
    """
    import ray

    outlive_readers()  # it may have been killed meanwhile
    with scratch_folder(_PREFIX) as folder:
        try:
            _start(int(sys.argv[1]), folder)
            print(f"{_SAYS}{ray.get_runtime_context().gcs_address}", flush=True)
            sys.stdin.read()
        except Exception as fault:  # Ray has no one kind for what keeps it from starting
            print(f"{_FAILS}{' '.join(str(fault).split())}", flush=True)
            return 1
        finally:
            ray.shutdown()
    return 0


def _start(cpus: int, folder: Path) -> None:
    """Start Ray, again where this machine is so busy that it took longer than Ray waits (30 s)."""
    import ray

    for attempt in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
            return
        except Exception as fault:  # Ray has no kind of its own for it
            if attempt + 1 == _STARTS or "timed out during startup" not in str(fault):
                raise
            for process in psutil.Process().children(recursive=True):
                process.kill()  # Ray leaves the parts of a failed start running


if __name__ == "__main__":
    sys.exit(main())
