"""A run's folder: what was asked for, and whether a second start is the same run. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from supersam.config.files import (
    CHECKPOINT_MANIFEST,
    CHECKPOINTS,
    DATA,
    RUN_FILE,
    SPACE_FILE,
    SUBNET_FILE,
)
from supersam.config import TrainRun, UserError, dump_run, load_run
from supersam.config.errors import describe_missing
from supersam.data.manifest import read_manifest
from supersam.runs.edits import differences, flat, tell_edits, write_settings
from supersam.runs.subnet_reference import find_subnet
from supersam.runtime.atomic import write_bytes, write_json
from supersam.health.records import saved_step
from supersam.runs.provenance import provenance_comment
from supersam.space import (
    SearchSpace,
    SubnetSpec,
    build_space,
    read_space,
    read_subnet,
    resolve_shape,
    space_yaml,
    subnet_cost,
)

# What a resumed run may change: where it runs, how often it reports, how long it is.
_CHANGEABLE = ("run", "dry_run", "cluster", "checkpoint", "watchdog", "optim.steps", "data.workers")
_CHANGEABLE_ENGINE = tuple(
    f"engine.{name}"
    for name in ("threads", "device", "loader_start", "log_every", "log_sample_ids", "zero_stage")
)


def prepare_run_folder(run: TrainRun) -> SearchSpace:
    """Create the folder of a new run, or check that an existing one is the same run.

    Writes `run.yaml` and `space.yaml`. Raises UserError that lists what differs, or names shards
    or a checkpoint that are not there; nothing is written then.
    """
    folder = run.folder
    space, only = check_run_folder(run)
    run = _settled(run, _saved(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, f"{provenance_comment()}{dump_run(run)}")
        write_bytes(folder / SPACE_FILE, space_yaml(space).encode())
        if only is not None:
            write_json(folder / SUBNET_FILE, only.to_dict())
    except OSError as fault:
        raise UserError(f"cannot write to {folder}: {fault}") from fault
    return space


def check_run_folder(run: TrainRun) -> tuple[SearchSpace, SubnetSpec | None]:
    """The space in force, and the subnet that alone is trained, of a new or an existing run.

    Writes nothing. Raises UserError as `prepare_run_folder`.
    """
    folder, only = run.folder, None
    tell_edits(folder)
    space = _build_space(run)
    for path in (*run.data.train, *run.data.val):
        read_manifest(path)  # now, not on a node an hour later
    require_weights(run)
    if run.sandwich.only is not None:
        only = find_subnet(
            run.sandwich.only, space, run=_run_of_start(run), option="--sandwich.only"
        )
    saved = _saved(folder)
    if saved is None:
        _require_sense(run)
    if saved is not None:
        _require_same(saved, _settled(run, saved), folder)
        space = read_space(folder / SPACE_FILE, space.shape)
        if only is not None and only != read_subnet(folder / SUBNET_FILE, space):
            raise UserError(f"{folder} trains another subnet, {folder / SUBNET_FILE}")
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; choose another --run DIR")
    return space, only


def _saved(folder: Path) -> TrainRun | None:
    """What was asked for when the folder was made; None for a new one."""
    file = folder / RUN_FILE
    return load_run(TrainRun, file) if file.exists() else None


def _require_sense(run: TrainRun) -> None:
    """Raise for settings without effect. A run of an older version may have them and goes on."""
    if run.prioritize.when != "off" and run.prioritize.fault is not None:
        raise UserError(f"--prioritize: {run.prioritize.fault}")
    if run.loss.distill and run.sandwich.only is not None and run.loss.teacher is None:
        raise UserError(
            "--loss.distill with --sandwich.only: one subnet alone has no larger one to learn from; "
            "name a frozen teacher with --loss.teacher CHECKPOINT, or leave --loss.distill out"
        )


def _settled(run: TrainRun, saved: TrainRun | None) -> TrainRun:
    """Replace what depends on the run's length by its value, or by the value of the saved run.

    A run that is made longer then keeps the step at which its sandwich began.
    """
    if run.sandwich.largest_only_steps is not None:
        return run
    steps = (run if saved is None else saved).largest_only_steps
    sandwich = run.sandwich.model_copy(update={"largest_only_steps": steps})
    return run.model_copy(update={"sandwich": sandwich})


def _run_of_start(run: TrainRun) -> Path | None:
    """Folder of the run whose weights this one begins from; None where it begins from no run."""
    start = run.model.checkpoint
    if start is None or not start.is_dir():
        return None
    return start.parent.parent if (start / CHECKPOINT_MANIFEST).is_file() else start


def require_weights(run: TrainRun) -> None:
    """Raise UserError where a teacher or what the run begins from is missing.

    Once a run has a checkpoint of its own, what it began from may be gone.
    """
    if run.loss.teacher is not None and not run.loss.teacher.exists():
        raise UserError(f"--loss.teacher {run.loss.teacher} {describe_missing(run.loss.teacher)}")
    start = run.model.checkpoint
    if start is None or saved_step(run.folder) > 0:
        return
    if not start.exists():
        raise UserError(f"--model.checkpoint {start} {describe_missing(start)}")
    is_checkpoint = not start.is_dir() or (start / CHECKPOINT_MANIFEST).is_file()
    if not is_checkpoint and not list(start.glob(f"{CHECKPOINTS}/step-*/{CHECKPOINT_MANIFEST}")):
        raise UserError(
            f"--model.checkpoint {start} is a folder without checkpoints of a run; train that "
            "first, or name a file"
        )
    other = (
        start if not (start / CHECKPOINT_MANIFEST).is_file() else start.parent.parent
    ) / RUN_FILE
    if start.is_dir() and other.is_file():
        theirs, ours = resolve_shape(load_run(TrainRun, other).model), resolve_shape(run.model)
        if replace(theirs, image_size=ours.image_size) != ours:
            raise UserError(
                f"--model.checkpoint {start} trained a model of other sizes; see {other}"
            )


def validation_folders(run: TrainRun) -> list[Path]:
    """Where the held-out shards of a run are."""
    return list(run.data.val) if run.data.source == "shards" else [run.folder / DATA / "val"]


def _require_same(saved: TrainRun, asked: TrainRun, folder: Path) -> None:
    before, now = (flat(run.model_dump(mode="json")) for run in (saved, asked))
    changed = [
        text
        for text in differences(before, now)
        if not text.startswith((*_CHANGEABLE, *_CHANGEABLE_ENGINE))
    ]
    if changed:
        raise UserError(
            f"{folder} holds another run. It differs in\n  "
            + "\n  ".join(changed)
            + f"\nGo on with it by --run {folder} alone, or choose another --run DIR"
        )


def describe_run(run: TrainRun) -> str:
    """The resolved configuration and what it means, for `--dry-run`. Touches no file."""
    space = _build_space(run)
    batch, accumulate = run.optim.global_batch, run.optim.accumulate
    micro = batch // accumulate
    worlds = [n for n in range(1, micro + 1) if micro % n == 0]
    lines = [
        dump_run(run),
        f"run folder: {run.folder}",
        f"search space: {space.num_subnets():,} subnets",
        *space.describe_ends(),
        _describe_steps(run),
        f"ranks that divide the batch of {batch} (accumulated {accumulate} x): {worlds}",
    ]
    return "\n".join(lines)


def _describe_steps(run: TrainRun) -> str:
    steps, alone = run.optim.steps, min(run.largest_only_steps, run.optim.steps)
    if run.sandwich.only is not None:
        return f"steps: {steps} of one subnet alone, {run.sandwich.only}"
    text = f"steps: {alone} of the largest subnet alone, then {steps - alone} of the sandwich"
    growing = run.sandwich.growing_steps
    return f"{text}, over whose first {growing} the space opens" if growing else text


def _build_space(run: TrainRun) -> SearchSpace:
    try:
        return build_space(run.space, resolve_shape(run.model))
    except ValueError as fault:
        raise UserError(f"space: {fault}") from fault
