"""A cluster's run folder: keys, configuration and the daemons' own folders, each with its owner."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path

from devcluster import config
from devcluster.layout import Cluster


def make_folder(cluster: Cluster) -> None:
    """Make the folder of a new cluster. Others may pass through it, but not list it."""
    _make(cluster.folder)
    cluster.write()
    _make(cluster.folder / "hosts")
    for host in cluster.machines:
        _make(cluster.host_folder(host))
        _make(cluster.host_folder(host) / "log", mode=0o700)
        _make(cluster.host_folder(host) / "munge", mode=0o755, owner="munge")
        _make(cluster.host_folder(host) / "spool", mode=0o755)
    _make(cluster.munge_folder, mode=0o755, owner="munge")
    if cluster.constrain_memory:
        _make(cluster.cgroup_folder)
        _make(cluster.cgroup_folder / "memory")
    _make(cluster.folder / "state", mode=0o700, owner="slurm")
    _write(cluster.folder / "munge.key", secrets.token_bytes(128), mode=0o400, owner="munge")
    _write_configuration(cluster)
    if cluster.gpus > 0:
        _make_gpus(cluster)


def _write_configuration(cluster: Cluster) -> None:
    etc = cluster.folder / "etc"
    _make(etc, mode=0o755)
    texts = {
        "slurm.conf": config.slurm_conf(cluster),
        "gres.conf": config.gres_conf(cluster),
        "cgroup.conf": config.cgroup_conf(cluster),
        "hosts": config.hosts_file(cluster),
    }
    for name, text in texts.items():
        _write(etc / name, text.encode(), mode=0o644)
    if cluster.accounting:
        _write_accounting(cluster)


def _write_accounting(cluster: Cluster) -> None:
    password = secrets.token_hex(24)
    slurmdbd_conf = config.slurmdbd_conf(cluster, password).encode()
    _write(cluster.folder / "etc" / "slurmdbd.conf", slurmdbd_conf, mode=0o600, owner="slurm")
    database = cluster.folder / "mariadb"
    _make(database, mode=0o700, owner="mysql")
    setup = config.database_setup(password).encode()
    _write(database / "setup.sql", setup, mode=0o400, owner="mysql")


def _make_gpus(cluster: Cluster) -> None:
    """Stand-ins that Slurm takes for GPUs: it wants device nodes; these are of /dev/null's kind."""
    _make(cluster.folder / "gpu")
    for index in range(cluster.gpus):
        path = cluster.folder / "gpu" / f"gpu{index}"
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def _make(path: Path, *, mode: int = 0o711, owner: str | None = None) -> None:
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        shutil.chown(path, owner, owner)


def _write(path: Path, content: bytes, *, mode: int, owner: str | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    path.chmod(mode)
    if owner is not None:
        shutil.chown(path, owner, owner)
