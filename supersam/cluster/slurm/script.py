"""What Slurm is asked for: a run as parameters of submitit, and the script that they make."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string  # the only way to see a script without Slurm

from supersam.cluster.ranked_run import RankedRun
from supersam.config import SearchRun, SlurmSite, UserError
from supersam.config.cluster import minutes
from supersam.config.files import CODE, JOB_FOLDER


def sbatch_parameters(run: RankedRun) -> dict[str, Any]:
    """Return the parameters of submitit's Slurm executor for a training or a design."""
    nodes = (run.cluster.nodes or 1) + run.cluster.spare_nodes
    parameters = batch_parameters(run.name, run.cluster, run.folder)
    if run.cluster.may_lose_nodes:
        # A range: a job that was requeued for a lost host starts without waiting for another spare.
        lossy = {"nodes": f"{run.cluster.fewest_nodes}-{nodes}", "no-kill": True}
        parameters["additional_parameters"] |= lossy
    return {**parameters, "nodes": nodes, **_tasks(run)}


def search_parameters(run: SearchRun) -> dict[str, Any]:
    """Return the parameters of submitit's Slurm executor for a search.

    Without --no-kill: where a host is lost the job is requeued, and the journal goes on. With it, a
    job whose batch host is lost would stand still until its time is over. And never a range of
    nodes, of which Slurm grants the fewest: `min_nodes` is for hosts that do not join.
    """
    cluster = run.cluster
    evaluators = cluster.evaluators_per_node or cluster.gpus_per_node or 1
    return {
        **batch_parameters(run.name, cluster, run.folder),
        "nodes": cluster.nodes or 1,
        "ntasks_per_node": 1,
        "cpus_per_task": evaluators * (cluster.cpus_per_task or 1),
    }


def batch_parameters(name: str, cluster: SlurmSite, folder: Path) -> dict[str, Any]:
    """Return the submitit parameters common to all jobs; the caller adds nodes and tasks.

    folder: holds the job's code and pickles.
    """
    return {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": None if cluster.time is None else minutes(cluster.time),
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": cluster.mem,
        "signal_delay_s": cluster.signal_delay_s,
        "wckey": None,
        "stderr_to_stdout": True,
        "use_srun": False,  # the batch step is ours; it starts the others
        "setup": setup_lines(shell_safe_path(folder)),
        "additional_parameters": extra_options(cluster),
    }


def sbatch_text(run: RankedRun) -> str:
    """Return the script that would be submitted for `run`, without Slurm."""
    return submitit_script(sbatch_parameters(run), run.folder)


def submitit_script(parameters: dict[str, Any], folder: Path) -> str:
    """Return the script of a job with these parameters; its code and pickles are in `folder`."""
    place = shell_safe_path(folder) / JOB_FOLDER
    command = f"{supervisor_python()} -u -m submitit.core._submit {shlex.quote(str(place))}"
    return str(_make_sbatch_string(command=command, folder=place, **parameters))


def script(
    parameters: dict[str, Any],
    command: str,
    *,
    folder: Path,
    setup: list[str],
    options: dict[str, str],
) -> str:
    """Return the script of a job that runs `command`. folder: takes its output."""
    additional = parameters["additional_parameters"] | options
    parameters = parameters | {"setup": setup, "additional_parameters": additional}
    return str(_make_sbatch_string(command=f"exec {command}", folder=folder, **parameters))


def supervisor_python() -> str:
    """Return the batch script's Python; it replaces the shell, so that signals reach it."""
    return f"exec {shlex.quote(sys.executable)}"


def cores_per_rank(run: RankedRun) -> int:
    """Return the cores of a rank: as configured, else one for it and one per loader worker."""
    return run.cluster.cpus_per_task or run.loader_workers + 1


def shell_safe_path(path: Path) -> Path:
    """Return `path` absolute. Raises UserError where a script would read it as more than a path."""
    path = path.absolute()
    odd = sorted(
        {char for char in str(path) if not char.isprintable() or char in "'\"\\$`%!#~&;<>|*?"}
    )
    if odd:
        raise UserError(
            f"the path {str(path)!r} holds {' '.join(odd)}, which Slurm cannot take; rename it"
        )
    return path


def _tasks(run: RankedRun) -> dict[str, int]:
    each, cores = run.cluster.ranks_per_node, cores_per_rank(run)
    if not run.cluster.may_lose_nodes:
        return {"ntasks_per_node": each, "cpus_per_task": cores}
    # With tasks per node and a range of nodes, Slurm grants the fewest even if more are free.
    return {"cpus_per_task": each * cores}


def setup_lines(folder: Path) -> list[str]:
    """Return the batch script's commands before Python. folder: holds the job's code."""
    job_folder, code = shlex.quote(str(folder / JOB_FOLDER)), shlex.quote(str(folder / CODE))
    return [
        "trap '' USR2 TERM  # until Python is up and takes them",
        f"if [ ! -d {job_folder} ]; then",
        f"  echo error: $(hostname) does not see {job_folder}: choose a --run DIR that all nodes "
        "share >&2; exit 2",
        "fi",
        f'if [ ! -O {job_folder} ] || [ "$(stat -c %a {job_folder})" != 700 ]; then',
        f"  echo error: {job_folder} must belong to you alone, as it holds pickles >&2; exit 1",
        "fi",
        f"export PYTHONPATH={code}",
        f"cd {code} || exit 1  # or `python -m` would prefer the code where the job was submitted",
    ]


def extra_options(cluster: SlurmSite) -> dict[str, Any]:
    """Return the options of sbatch that submitit has no name for."""
    options: dict[str, Any] = dict(option.split("=", 1) for option in cluster.sbatch)
    options = {key: True if value == "true" else value for key, value in options.items()}
    # B: the supervisor alone gets the notice, and passes it on.
    return options | {"signal": f"B:USR2@{cluster.signal_delay_s}", "requeue": True}
