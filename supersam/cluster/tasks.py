"""The kinds of run that ranks execute: a training, and the design of a search space.

Imports torch only inside functions: the command line must not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from supersam.config import DesignRun, TrainRun, load_run, read_yaml
from supersam.config.files import RUN_FILE

Task = TrainRun | DesignRun


def load_task(folder: Path) -> Task:
    """The prepared run of `folder`, wherever that was moved to. Raises UserError."""
    path = folder / RUN_FILE
    if read_yaml(path).get("kind") == "design":
        run = load_run(DesignRun, path)
        return run.model_copy(update={"out": folder.with_name(run.out.name)})
    return load_run(TrainRun, path).model_copy(update={"run": folder})


def prepare_task(run: Task) -> None:
    """Create or check the run's folder. Raises UserError for what is known already."""
    if isinstance(run, DesignRun):
        from supersam.design.files import prepare_design_folder

        prepare_design_folder(run)
        return
    from supersam.runs.folder import prepare_run_folder

    prepare_run_folder(run)


def execute_task(run: Task) -> None:
    """Execute the prepared run as the rank that the environment describes."""
    if isinstance(run, DesignRun):
        from supersam.design.session import design

        design(run)
        return
    from supersam.training.session import train

    train(run)


def describe_task(run: Task, where: str, show: Callable[[str], None]) -> bool:
    """Show what `--dry-run` prints. Returns whether nothing that it has checked is an error."""
    from supersam.cluster.preflight import check_slurm, describe_submission, show_findings

    if isinstance(run, TrainRun):
        return describe_submission(run, where, show)
    from supersam.design.files import describe_design

    show(describe_design(run))
    if where != "slurm":
        return True
    from supersam.cluster.slurm.script import sbatch_text

    show(f"submitted would be\n\n{sbatch_text(run)}\npreflight")
    return show_findings(check_slurm(run.cluster), show)
