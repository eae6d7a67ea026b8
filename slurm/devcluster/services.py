"""Which daemons the controller and the hosts run, and when each counts as ready."""

from __future__ import annotations

from devcluster.daemons import Daemons, is_listening
from devcluster.layout import CONTROLLER

SLURMCTLD_PORT, SLURMD_PORT, SLURMDBD_PORT, MARIADB_PORT = 6817, 6818, 6819, 3306  # the defaults


def start_services(daemons: Daemons) -> None:
    """Start what this host runs and wait until it serves."""
    _start_munged(daemons)
    if daemons.host != CONTROLLER:
        return _start_slurmd(daemons)
    if daemons.cluster.accounting:
        _start_mariadb(daemons)
        _start_slurmdbd(daemons)
    return _start_slurmctld(daemons)


def _start_munged(daemons: Daemons) -> None:
    cluster = daemons.cluster
    folder = cluster.munge_folder
    for leftover in folder.iterdir():  # of a host that was killed
        leftover.unlink()
    key = f"--key-file={cluster.folder}/munge.key"
    own = [f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--seed-file={folder}/seed"]
    argv = ["munged", "--foreground", key, *own]
    daemons.start("munged", argv, user="munge")
    daemons.wait_ready("munged", (folder / "socket").is_socket, timeout_s=20)


def _start_slurmd(daemons: Daemons) -> None:
    conf = str(daemons.cluster.slurm_conf)
    daemons.start("slurmd", ["slurmd", "-D", "-f", conf, "-N", daemons.host])
    daemons.wait_ready("slurmd", lambda: is_listening(SLURMD_PORT), timeout_s=30)


def _start_slurmctld(daemons: Daemons) -> None:
    daemons.start("slurmctld", ["slurmctld", "-D", "-f", str(daemons.cluster.slurm_conf)])
    daemons.wait_ready("slurmctld", lambda: is_listening(SLURMCTLD_PORT), timeout_s=30)


def _start_mariadb(daemons: Daemons) -> None:
    """MariaDB on the controller's own loopback; a killed cluster's data need not survive."""
    folder = daemons.cluster.folder / "mariadb"
    options = ["--no-defaults", "--user=mysql", f"--datadir={folder}/data"]
    small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"]
    quick = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync"]
    if not (folder / "data").exists():
        install = ["mariadb-install-db", *options, *small, *quick, "--skip-test-db"]
        daemons.run("mariadb-install-db", install, timeout_s=120)
    listen = ["--bind-address=127.0.0.1", f"--port={MARIADB_PORT}", f"--socket={folder}/socket"]
    listen.append("--skip-name-resolve")
    setup = f"--init-file={folder}/setup.sql"
    daemons.start("mariadbd", ["mariadbd", *options, *small, *quick, *listen, setup])
    daemons.wait_ready("mariadbd", lambda: is_listening(MARIADB_PORT), timeout_s=60)


def _start_slurmdbd(daemons: Daemons) -> None:
    cluster = daemons.cluster
    daemons.start("slurmdbd", ["slurmdbd", "-D"])
    daemons.wait_ready("slurmdbd", lambda: is_listening(SLURMDBD_PORT), timeout_s=60)
    known = cluster.folder / "mariadb" / "cluster_added"
    if not known.exists():
        daemons.run("sacctmgr", ["sacctmgr", "-i", "add", "cluster", cluster.name], timeout_s=60)
        known.touch()
