"""What can be checked before a node is asked for, and what `--dry-run` shows of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from supersam.cluster.follow_up import script_text
from supersam.cluster.ranked_run import (
    RankedRun,
    alternatives,
    legal_node_counts,
    require_legal_world,
)
from supersam.cluster.slurm.commands import SlurmError, missing_slurm, run_command
from supersam.config import SlurmSite, TrainRun, UserError
from supersam.config.cluster import minutes
from supersam.config.files import RUN_FILE
from supersam.health.records import saved_step
from supersam.runtime.table import count

_GIB = 2**30
_CONTEXT_GIB = 1.0
"""What the driver and the libraries take of a GPU."""
_GAPS = 0.05
"""Share of a GPU's memory that the allocator may lose between its blocks."""


def describe_ranked_run(run: RankedRun, where: str, show: Callable[[str], None]) -> bool:
    """Show what `--dry-run` prints, each part as soon as it is known. Writes no file.

    Returns whether all findings are free of errors.
    """
    if isinstance(run, TrainRun):
        return _describe_training(run, where, show)
    from supersam.design.files import describe_design

    show(describe_design(run))
    if where != "slurm":
        return True
    from supersam.cluster.slurm.script import sbatch_text

    show(f"submitted would be\n\n{sbatch_text(run)}\npreflight")
    return show_findings(check_slurm(run.cluster), show)


def _describe_training(run: TrainRun, where: str, show: Callable[[str], None]) -> bool:
    """Show configuration, script, findings and memory."""
    from supersam.runs.folder import describe_run

    on_slurm = where == "slurm"
    if on_slurm:
        require_legal_world(run, _world(run))
    show(f"{describe_run(run)}\n{_checkpoints(run)}")
    if on_slurm:
        _show_scripts(run, show)
    show("preflight")
    ok = show_findings(check_run(run), show)
    ok &= show_findings(_check_weights(run), show)
    ok &= show_findings(check_slurm(run.cluster) if on_slurm else [], show)
    show("  a step's memory, from a step without numbers: takes some seconds")
    show(f"  {_memory(run)}")
    return ok & show_findings(check_memory(run), show)


def _check_weights(run: TrainRun) -> list[str]:
    """Open the file of weights that a new run begins from, and compare its sizes."""
    start = run.model.checkpoint
    if start is None or not start.is_file() or saved_step(run.folder) > 0:
        return []
    from supersam.model.sam import require_fitting  # torch: for a dry run alone
    from supersam.space import resolve_shape

    try:
        require_fitting(resolve_shape(run.model), start)
    except UserError as fault:
        return [f"error: {fault}"]
    return [f"ok: checkpoint {start} fits the model"]


def _show_scripts(run: TrainRun, show: Callable[[str], None]) -> None:
    from supersam.cluster.slurm.script import sbatch_text

    show(
        f"nodes of {count(run.cluster.ranks_per_node, 'rank')} that divide the batch: "
        f"{alternatives(legal_node_counts(run))}"
    )
    show(f"\nsubmitted would be\n\n{sbatch_text(run)}")
    if run.cluster.then is not None:
        show(f"\nand, with the number of that job for JOB,\n\n{script_text(run, 'JOB')}")


def show_findings(findings: Sequence[str], show: Callable[[str], None]) -> bool:
    """Show each; returns whether none of them is an error."""
    for finding in findings:
        show(f"  {finding}")
    return not any(finding.startswith("error: ") for finding in findings)


def check_run(run: TrainRun) -> list[str]:
    """List findings about the folder, its disk and the shards; each begins with ok or error."""
    shards = [_check_shards(path) for path in (*run.data.train, *run.data.val)]
    found = [_check_folder(run), _check_space(run), *shards]
    if all(finding.startswith("ok: ") for finding in shards):
        return [*found, _check_start(run)]
    from supersam.runs.folder import require_weights  # of the start, the shards are not all

    try:
        require_weights(run)
    except UserError as fault:
        found.append(f"error: {fault}")
    return found


def check_slurm(cluster: SlurmSite) -> list[str]:
    """List findings about a job's partition and its limits, or what could not be checked."""
    missing = missing_slurm()
    if missing is not None:
        return [f"not checked: partition, time limit and preemption, as {missing}"]
    try:
        return check_partition(cluster, _partitions())
    except SlurmError as fault:
        return [f"not checked: partition, time limit and preemption ({fault})"]


def require_enough_nodes(cluster: SlurmSite) -> None:
    """Raise UserError where the partition has too few nodes: the job would wait for ever.

    A partition that Slurm does not show is left to Slurm, and so is all where it does not answer.
    """
    try:
        partitions = _partitions()
    except SlurmError:
        return
    chosen = [p for p in partitions if _is_chosen(p, cluster.partition)]
    finding = _check_nodes(cluster, chosen) if chosen else "ok"
    if finding.startswith("error: "):
        raise UserError(finding.removeprefix("error: "))


def check_partition(cluster: SlurmSite, partitions: list[dict[str, str]]) -> list[str]:
    """List findings about a job's partition. partitions: as `scontrol show partition` has them."""
    wanted = cluster.partition
    names = [p["PartitionName"] for p in partitions]
    chosen = [p for p in partitions if _is_chosen(p, wanted)]
    if not chosen:
        asked = f"partition {wanted} does not exist" if wanted else "no partition is the default"
        return [f"error: {asked}; there are {', '.join(names)}: choose with --partition"]
    partition = chosen[0]
    return [
        f"ok: partition {partition['PartitionName']}, {partition.get('TotalNodes', '?')} nodes",
        _check_time(cluster, partition),
        _check_nodes(cluster, chosen),
        f"ok: PreemptMode={partition.get('PreemptMode', '?')} GraceTime="
        f"{partition.get('GraceTime', '?')} s: what is preempted has that long to save",
    ]


def checkpoint_bytes(run: TrainRun) -> int:
    """Return the size of a checkpoint in fp32: weights, their average if kept, and two moments."""
    from supersam.space import build_space, resolve_shape, subnet_cost

    shape = resolve_shape(run.model)
    tensors = 3 if run.optim.ema == 0 else 4
    return 4 * tensors * subnet_cost(build_space(run.space, shape).largest(), shape).params


def check_memory(run: TrainRun) -> list[str]:
    """List a finding about the largest micro-batch that fits a GPU; none without a GPU."""
    if not _on_gpu(run):
        return []
    gib = run.cluster.gpu_memory_gib or _visible_gpu_gib()
    if gib is None:
        return ["not checked: the largest batch that fits, as --gpu-memory-gib is not set"]
    from supersam.training.step_memory import largest_batch

    limit = int((gib * (1 - _GAPS) - _CONTEXT_GIB) * _GIB)
    most = largest_batch(run, world_size=_world(run), on_gpu=True, limit=limit)
    return [describe_batch(run, most, gib)]


def describe_batch(run: TrainRun, most: int, gib: float) -> str:
    """Return the finding for a GPU of `gib` GiB that takes at most `most` images."""
    share = run.optim.global_batch // _world(run)
    images = max(1, share // run.optim.accumulate)
    text = f"at most {most} images at once fit into a GPU of {gib:g} GiB, this run takes {images}"
    if most >= images:
        return f"ok: {text}"
    if most == 0:
        return (
            f"error: {text}; choose --engine.precision bf16, --model.attention in_kernel, "
            "--engine.checkpoint-activations or fewer --data.prompts-per-image"
        )
    accumulate = next(a for a in range(1, share + 1) if share % a == 0 and share // a <= most)
    return f"error: {text}; set --optim.accumulate {accumulate}, which gives the same steps"


def _on_gpu(run: TrainRun) -> bool:
    return run.engine.device == "cuda" or bool(run.cluster.gpus_per_node)


def _visible_gpu_gib() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / _GIB


def _world(run: TrainRun) -> int:
    return (run.cluster.nodes or 1) * run.cluster.ranks_per_node


def _checkpoints(run: TrainRun) -> str:
    each, kept = checkpoint_bytes(run), run.checkpoint.keep_last + len(run.checkpoint.pin) + 1
    return f"a checkpoint: {each / _GIB:.2f} GiB, at most {kept} kept: {each * kept / _GIB:.2f} GiB"


def _memory(run: TrainRun) -> str:
    from supersam.training.step_memory import describe_memory, predict_memory

    images = max(1, run.optim.global_batch // _world(run) // run.optim.accumulate)
    memory = predict_memory(run, world_size=_world(run), on_gpu=_on_gpu(run), images=images)
    return describe_memory(memory, images)


def _check_folder(run: TrainRun) -> str:
    place = _existing_parent(run.folder)
    if not os.access(place, os.W_OK):
        return f"error: {place} is not writable; choose another --run DIR"
    return f"ok: {place} is writable"


def _check_start(run: TrainRun) -> str:
    from supersam.runs.folder import check_run_folder

    try:
        check_run_folder(run)
    except UserError as fault:
        return f"error: {fault}"
    goes_on = (run.folder / RUN_FILE).exists()
    return f"ok: {run.folder} {'holds this run, which would go on' if goes_on else 'is new'}"


def _check_space(run: TrainRun) -> str:
    free = shutil.disk_usage(_existing_parent(run.folder)).free
    needed = checkpoint_bytes(run) * (run.checkpoint.keep_last + len(run.checkpoint.pin) + 2)
    text = f"{free / _GIB:.1f} GiB are free, {needed / _GIB:.1f} needed for checkpoints"
    return f"ok: {text}" if free > needed else f"error: {text}; lower --checkpoint.keep-last"


def _check_shards(folder: Path) -> str:
    from supersam.data.shards import ShardReader

    try:
        return f"ok: {folder}, {ShardReader(folder).num_images} images"
    except (UserError, OSError, ValueError) as fault:
        return f"error: {fault}"


def _is_chosen(partition: dict[str, str], wanted: str | None) -> bool:
    if wanted is None:
        return partition.get("Default") == "YES"
    return partition["PartitionName"] in wanted.split(",")


def _check_time(cluster: SlurmSite, partition: dict[str, str]) -> str:
    most = partition.get("MaxTime", "UNLIMITED")
    if cluster.time is None:
        return f"ok: no --time; the partition's default is {partition.get('DefaultTime', '?')}"
    if most != "UNLIMITED" and minutes(cluster.time) > minutes(most):
        return f"error: --time {cluster.time} is above the partition's MaxTime={most}"
    return f"ok: --time {cluster.time} within MaxTime={most}"


def _check_nodes(cluster: SlurmSite, chosen: list[dict[str, str]]) -> str:
    """Whether the largest of the partitions has what the job cannot do without."""
    wanted = cluster.fewest_nodes
    total = max(int(partition.get("TotalNodes", wanted)) for partition in chosen)
    if wanted > total:
        names = ",".join(partition["PartitionName"] for partition in chosen)
        return (
            f"error: {wanted} nodes, the partition has {total} ({names}); ask for fewer with "
            "--nodes, or choose another --partition"
        )
    return f"ok: {wanted} of {total} nodes"


def _partitions() -> list[dict[str, str]]:
    """What Slurm says of each partition that it shows. Raises SlurmError."""
    lines = run_command("scontrol", "show", "partition", "--oneliner").splitlines()
    words = [[word for word in line.split() if "=" in word] for line in lines]
    return [dict(word.split("=", 1) for word in line) for line in words if line]


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
