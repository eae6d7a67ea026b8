"""What the machine must offer: root, Debian packages, namespaces. Asked before any start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from devcluster.cgroups import missing_memory_controller
from devcluster.errors import UsageError

PACKAGES = Path(__file__).with_name("packages.txt")
PROGRAMS = {
    "ip": "iproute2",
    "mariadbd": "mariadb-server",
    "mount": "util-linux",
    "munged": "munge",
    "nsenter": "util-linux",
    "sacctmgr": "slurm-wlm",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "unshare": "util-linux",
}
ACCOUNTING_ONLY = {"mariadbd", "slurmdbd"}
NAMESPACES = ["--net", "--uts", "--mount", "--pid", "--ipc", "--fork"]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_machine(*, accounting: bool, constrain_memory: bool = False) -> None:
    """Raise UsageError with every missing thing and its remedy."""
    missing = [*_missing_root(), *_missing_programs(accounting=accounting)]
    if constrain_memory:
        missing += missing_memory_controller()
    if len(missing) == 0:
        missing = _missing_namespaces()
    if len(missing) > 0:
        raise UsageError("devcluster cannot run here:\n  " + "\n  ".join(missing))


def require_root(command: str) -> None:
    """Raise UsageError unless root."""
    if os.geteuid() != 0:
        raise UsageError(f"`devcluster {command}` runs as uid {os.geteuid()}; use root (sudo)")


def _missing_root() -> list[str]:
    if os.geteuid() == 0:
        return []
    return [f"runs as uid {os.geteuid()}, but namespaces need root; use sudo"]


def _missing_programs(*, accounting: bool) -> list[str]:
    wanted = [name for name in PROGRAMS if accounting or name not in ACCOUNTING_ONLY]
    absent = [name for name in wanted if shutil.which(name, path=SYSTEM_PATH) is None]
    if len(absent) == 0:
        return []
    packages = PACKAGES.read_text(encoding="utf-8").split()
    names = ", ".join(f"{name} ({PROGRAMS[name]})" for name in absent)
    return [f"no {names}; run: apt-get install --no-install-recommends {' '.join(packages)}"]


def _missing_namespaces() -> list[str]:
    probe = subprocess.run(
        ["unshare", *NAMESPACES, "mount", "-n", "-t", "proc", "proc", "/proc"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    if probe.returncode == 0:
        return []
    return [
        f"may not make namespaces ({probe.stderr.strip()}); in a container, start it with "
        "--privileged"
    ]
