"""The text of slurm.conf and its neighbours. Pure functions of a Cluster; writes nothing."""

from __future__ import annotations

import socket

from devcluster.layout import CONTROLLER, Cluster

# A requeued job waits until its credential has expired: 120 s by default, too long for tests.
CREDENTIAL_S = 30
GRACE_S = 20


def slurm_conf(cluster: Cluster) -> str:
    """The controller, the hosts, and two partitions: `urgent` preempts `batch`."""
    spool = cluster.host_folder("%n") / "spool"
    hosts = f"n[1-{cluster.hosts}]"
    return f"""\
ClusterName={cluster.name}
SlurmctldHost={CONTROLLER}({cluster.address(CONTROLLER)})
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={cluster.munge_folder}/socket,cred_expire={CREDENTIAL_S}
StateSaveLocation={cluster.folder}/state
SlurmdSpoolDir={spool}
SlurmctldPidFile={cluster.folder}/state/slurmctld.pid
SlurmdPidFile={spool}/slurmd.pid
SlurmdLogFile={cluster.log_path("%n", "steps")}

ProctrackType=proctrack/linuxproc
TaskPlugin={"task/cgroup" if cluster.constrain_memory else "task/none"}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=30
KillWait=5
JobRequeue=1

SelectType=select/cons_tres
SelectTypeParameters={"CR_Core_Memory" if cluster.constrain_memory else "CR_Core"}
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,batch_sched_delay=0
{accounting_lines(cluster)}{gres_types_line(cluster)}
{node_lines(cluster)}
PartitionName=batch Nodes={hosts} Default=YES PriorityTier=1 GraceTime={GRACE_S} MaxTime=1-0
PartitionName=urgent Nodes={hosts} PriorityTier=10 PreemptMode=OFF MaxTime=1-0
"""


def accounting_lines(cluster: Cluster) -> str:
    """Where finished jobs are kept, if anywhere."""
    if not cluster.accounting:
        return ""
    return (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        f"AccountingStorageHost={cluster.address(CONTROLLER)}\n"
        f"AccountingStoragePass={cluster.munge_folder}/socket\n"
        "MinJobAge=5\n"  # slurmctld forgets jobs soon: sacct has to answer
    )


def gres_types_line(cluster: Cluster) -> str:
    """Names the gpu resource where there is one."""
    return "GresTypes=gpu\n" if cluster.gpus > 0 else ""


def node_lines(cluster: Cluster) -> str:
    """One line a host: NodeAddr spares the machine names in its /etc/hosts."""
    gres = f" Gres=gpu:{cluster.gpus}" if cluster.gpus > 0 else ""
    size = f"CoresPerSocket={cluster.cpus_per_host} RealMemory={cluster.memory_mib}{gres}"
    return "".join(
        f"NodeName={host} NodeAddr={cluster.address(host)} Sockets=1 {size} State=UNKNOWN\n"
        for host in cluster.host_names
    )


def gres_conf(cluster: Cluster) -> str:
    """The stand-in GPUs: Slurm counts and assigns device files, and never opens them."""
    files = f"{cluster.folder}/gpu/gpu[0-{cluster.gpus - 1}]"
    return f"NodeName=n[1-{cluster.hosts}] Name=gpu File={files}\n" if cluster.gpus > 0 else ""


def cgroup_conf(cluster: Cluster) -> str:
    """v1 loads without touching a cgroup unless told to; v2 would ask systemd for a scope."""
    plugin = "CgroupPlugin=cgroup/v1\n"
    if not cluster.constrain_memory:
        return plugin
    return f"{plugin}CgroupMountpoint={cluster.cgroup_folder}\nConstrainRAMSpace=yes\n"


def slurmdbd_conf(cluster: Cluster, password: str) -> str:
    """The accounting daemon; MariaDB listens on the controller's own loopback."""
    address = cluster.address(CONTROLLER)
    return f"""\
DbdHost={CONTROLLER}
DbdAddr={address}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={cluster.munge_folder}/socket
PidFile={cluster.folder}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageLoc=slurm
StorageUser=slurm
StoragePass={password}
"""


def hosts_file(cluster: Cluster) -> str:
    """The hosts' /etc/hosts; the machine is known by its own name and as `login`."""
    named = [(cluster.address(host), host) for host in (CONTROLLER, *cluster.host_names)]
    machine = (cluster.address(None), f"{socket.gethostname()} login")
    lines = [("127.0.0.1", "localhost"), ("::1", "localhost ip6-localhost"), machine, *named]
    return "".join(f"{address}\t{names}\n" for address, names in lines)


def database_setup(password: str) -> str:
    """What MariaDB executes at each start."""
    return f"""\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
"""
