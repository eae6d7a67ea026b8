"""Which hosts a job leaves out: those on which ranks hung lately, where enough others are left.

Apart from its two users: the submission and, on a requeue, the supervisor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from supersam.cluster.ranked_run import RankedRun
from supersam.cluster.slurm import commands as slurm
from supersam.health.bad_hosts import bad_hosts

_NARROWING = ("nodelist=", "reservation=", "nodefile=")


def hosts_to_avoid(run: RankedRun, partition: str | None) -> list[str]:
    """List hosts of the partition (None: the default) that `run` should leave out, and can."""
    hung = bad_hosts(run.folder)
    if not hung or _is_narrowed(run):
        return []
    there = slurm.partition_hosts(partition)
    excluded = run.cluster.exclude
    out = set() if excluded is None else set(slurm.expand_hosts(excluded))
    needed = run.cluster.min_nodes or run.cluster.nodes or 1
    return choose_avoided(hung, [host for host in there if host not in out], needed=needed)


def choose_avoided(hung: Collection[str], there: Sequence[str], *, needed: int) -> list[str]:
    """List those of `there` that hung; none where the others are fewer than `needed`."""
    avoided = [host for host in there if host in hung]
    return avoided if len(there) - len(avoided) >= needed else []


def merge_hosts(excluded: str | None, avoided: Sequence[str]) -> str:
    """Join what the user excludes and what is avoided to one host list."""
    return ",".join([*([] if excluded is None else [excluded]), *avoided])


def _is_narrowed(run: RankedRun) -> bool:
    """Whether the job takes only some hosts of the partition: which, is not known here."""
    narrowing = [option for option in run.cluster.sbatch if option.startswith(_NARROWING)]
    return run.cluster.constraint is not None or bool(narrowing)
