"""What Slurm is asked for: a run as the parameters of submitit, and the script they make."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string  # the only way to see a script without Slurm

from supersam.cluster.tasks import Task
from supersam.config import ClusterConfig, UserError
from supersam.config.cluster import minutes
from supersam.config.files import JOB_FOLDER


def sbatch_parameters(run: Task) -> dict[str, Any]:
    """The parameters of submitit's Slurm executor for `run`."""
    nodes = (run.cluster.nodes or 1) + run.cluster.spare_nodes
    return {**batch_parameters(run.name, run.cluster, run.folder), "nodes": nodes, **_tasks(run)}


def batch_parameters(name: str, cluster: ClusterConfig, folder: Path) -> dict[str, Any]:
    """What a job of ours asks for, whatever it does, but its nodes and tasks.

    folder: the job's code and pickles are there.
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


def sbatch_text(run: Task) -> str:
    """The script that would be submitted for `run`, without Slurm."""
    return submitit_script(sbatch_parameters(run), run.folder)


def submitit_script(parameters: dict[str, Any], folder: Path) -> str:
    """The script of a job with these parameters of submitit, its code and pickles in `folder`."""
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
    """The script of a job that runs `command`, its output in `folder`, with sbatch `options`."""
    additional = parameters["additional_parameters"] | options
    parameters = parameters | {"setup": setup, "additional_parameters": additional}
    return str(_make_sbatch_string(command=f"exec {command}", folder=folder, **parameters))


def build_executor(run: Task) -> submitit.SlurmExecutor:
    """The executor of submitit for `run`; its folder exists."""
    executor = submitit.SlurmExecutor(
        run.folder.absolute() / JOB_FOLDER, python=supervisor_python()
    )
    executor.update_parameters(**sbatch_parameters(run))
    return executor


def supervisor_python() -> str:
    """The batch script's Python, in the place of its shell: signals to the script reach it."""
    return f"exec {shlex.quote(sys.executable)}"


def cores_per_rank(run: Task) -> int:
    """Cores of each rank: what was asked for, else one for it and one for each loader worker."""
    return run.cluster.cpus_per_task or run.loader_workers + 1


def shell_safe_path(path: Path) -> Path:
    """`path` absolute. Raises UserError where Slurm or a script would read more than a path."""
    path = path.absolute()
    odd = sorted(
        {char for char in str(path) if not char.isprintable() or char in "'\"\\$`%!#~&;<>|*?"}
    )
    if odd:
        raise UserError(f"the path {str(path)!r} holds {odd}, which Slurm cannot take; rename it")
    return path


def _tasks(run: Task) -> dict[str, int]:
    each, cores = run.cluster.ranks_per_node, cores_per_rank(run)
    if run.cluster.min_nodes is None:
        return {"ntasks_per_node": each, "cpus_per_task": cores}
    # With tasks per node and a range of nodes, Slurm grants the fewest even if more are free.
    return {"cpus_per_task": each * cores}


def setup_lines(folder: Path) -> list[str]:
    """The batch script's commands before Python; the job's code and pickles are in `folder`."""
    job_folder, code = shlex.quote(str(folder / JOB_FOLDER)), shlex.quote(str(folder / "code"))
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


def extra_options(cluster: ClusterConfig) -> dict[str, Any]:
    """Options of sbatch that submitit has no name for."""
    options: dict[str, Any] = dict(option.split("=", 1) for option in cluster.sbatch)
    options = {key: True if value == "true" else value for key, value in options.items()}
    # B: the supervisor alone gets the notice, and passes it on.
    options |= {"signal": f"B:USR2@{cluster.signal_delay_s}", "requeue": True}
    if cluster.min_nodes is not None:
        options["nodes"] = f"{cluster.min_nodes}-{(cluster.nodes or 1) + cluster.spare_nodes}"
    return options | ({"no-kill": True} if cluster.may_lose_nodes else {})
