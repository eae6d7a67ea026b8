"""Submitting to Slurm, whose commands are stand-ins: what is said before a job is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supersam.cluster.launcher import submit
from supersam.cluster.search.job import submit_search
from supersam.config import SearchRun, TrainRun
from supersam.runs.folder import prepare_run_folder
from tests.cluster.tiny_run import TINY


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A command sets its process's umask for good."""
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)


@pytest.fixture
def asked(slurm, tmp_path: Path) -> Path:
    """A file that holds the words of every sbatch; the cluster has one partition of 3 nodes."""
    asked = tmp_path / "asked"
    slurm("sbatch", f"/bin/cat >> {asked}; echo \"$@\" >> {asked}; echo 'Submitted batch job 7'")
    slurm("srun", "")  # submitit looks for it
    slurm("scontrol", "echo 'PartitionName=batch Default=YES TotalNodes=3 MaxTime=UNLIMITED'")
    return asked


def run_of(folder: Path, **cluster: object) -> TrainRun:
    values = {"run": folder, "cluster": {"cluster": "slurm", **cluster}}
    values["optim"] = {**TINY["optim"], "global_batch": 24}
    return TrainRun.model_validate(TINY | values)


def finish(folder: Path, step: int) -> None:
    (folder / "progress.json").write_text(json.dumps({"step": step}), encoding="utf-8")


def test_a_complete_run_asks_for_no_nodes(asked: Path, tmp_path: Path, capsys) -> None:
    run = run_of(tmp_path / "run", nodes=2)
    assert submit(run) == 0
    assert asked.exists()
    asked.unlink()
    (run.folder / "job.json").unlink()  # that job is over
    finish(run.folder, step=run.optim.steps)
    assert submit(run) == 0
    assert "this run is complete at step 4; raise --optim.steps" in capsys.readouterr().out
    assert not asked.exists()
    longer = run.model_copy(update={"optim": run.optim.model_copy(update={"steps": 9})})
    assert submit(longer) == 0
    assert asked.exists()


def test_what_follows_a_complete_run_waits_for_no_job(asked: Path, tmp_path: Path, capsys) -> None:
    run = run_of(tmp_path / "run", nodes=2, then="evaluate")
    prepare_run_folder(run)  # as by a training here, which copies no code
    finish(run.folder, step=run.optim.steps)
    assert submit(run) == 0
    script = asked.read_text(encoding="utf-8")
    assert "follow_up" in script
    assert "dependency" not in script
    assert (run.folder / "code" / "supersam").is_dir()


def test_more_nodes_than_there_are_make_no_job(asked: Path, slurm, tmp_path: Path, capsys) -> None:
    run = run_of(tmp_path / "run", nodes=4)
    assert submit(run) == 2
    assert "4 nodes, the partition has 3 (batch); ask for fewer" in capsys.readouterr().err
    assert not asked.exists()
    assert not run.folder.exists()
    slurm("scontrol", '[ "$1" = ping ] || { echo no answer >&2; exit 1; }')
    assert submit(run) == 0  # the queue may know more


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [
        ({"nodes": 3}, None),
        ({"nodes": 4}, "4 nodes, the partition has 3"),
        ({"nodes": 2, "partition": "nope"}, "partition nope does not exist; there are batch"),
    ],
)
def test_a_dry_run_finds_what_slurm_would_refuse(
    asked: Path, tmp_path: Path, trained, capsys, cluster, fault
) -> None:
    run = run_of(tmp_path / "run", **cluster).model_copy(update={"dry_run": True})
    place = {"cluster": {"cluster": "slurm", **cluster}, "dry_run": True}
    search = SearchRun.model_validate({"run": trained.folder, "name": "absent", **place})
    for submitted in (lambda: submit(run), lambda: submit_search(search)):
        assert submitted() == (0 if fault is None else 1)
        said = capsys.readouterr().out
        assert "#SBATCH --nodes=" in said
        assert [line for line in said.splitlines() if line.startswith("  error: ")] == (
            [] if fault is None else [next(x for x in said.splitlines() if fault in x)]
        )
    assert not asked.exists()


def test_slurms_refusal_is_said_once(asked: Path, slurm, tmp_path: Path, capsys) -> None:
    slurm("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    assert submit(run_of(tmp_path / "run", nodes=2, partition="nope")) == 2
    assert capsys.readouterr().err.count("invalid partition") == 1
    assert not (tmp_path / "run").exists()  # nothing of worth is in it
