"""Real training on the real cluster: it survives what clusters do. About five minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from supersam.runs.attempts import read_attempts
from supersam.search import read_journal
from tests.cluster.handle import PROJECT, DevCluster, wait_for
from tests.cluster.training import (
    ENCLOSING,
    PATIENCE_S,
    SLURM,
    assert_same_losses,
    assert_same_weights,
    ends,
    finish,
    job_of,
    launch,
    printed,
    reference_run,
    samples_by_step,
    wait_for_attempt,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

DEMO = PROJECT / "configs" / "train" / "demo.yaml"
# Less of it, to save time; fp32, as bf16 rounds a batch of one otherwise than a batch of eight.
DEMO_FLAGS = (
    *("--optim.steps", "4", "--engine.precision", "fp32", "--checkpoint.validate-images", "8"),
    *("--data.synthetic-train.images", "32", "--data.synthetic-val.images", "8"),
    *("--engine.log-every", "1", "--engine.log-sample-ids", "--data.workers", "0"),
)


def test_the_demo_on_eight_hosts_trains_as_one_process_does(
    devcluster: DevCluster, folder: Path, tmp_path: Path
):
    words = ("--nodes", "8", *SLURM, *DEMO_FLAGS)
    process = launch(folder, *words, env=devcluster.env | ENCLOSING, config=DEMO)
    wait_for_attempt(folder, 1)
    finish(process, folder)
    devcluster.wait_idle()
    (start, end) = read_attempts(folder)
    assert sorted(start.hosts) == devcluster.hosts
    assert (start.world_size, end.step, end.exit_code) == (8, 4, 0)
    alone = reference_run(tmp_path / "alone", 1, *DEMO_FLAGS, config=DEMO)
    assert_same_losses(folder, alone, steps=4)
    assert samples_by_step(folder) == samples_by_step(alone)


def test_notice_costs_no_step_and_no_sample(devcluster: DevCluster, folder: Path, reference: Path):
    process = launch(folder, "--nodes", "2", *SLURM, env=devcluster.env)
    job = job_of(folder)
    wait_for_attempt(folder, 1)
    devcluster.run(["scancel", "--signal=USR2", job])
    wait_for_attempt(folder, 2)
    devcluster.run(["scontrol", "requeue", job])
    wait_for_attempt(folder, 3)
    devcluster.run(["scontrol", "requeue", job])
    wait_for_attempt(folder, 4)
    sleep = "#!/bin/sh\nsleep 2\n"
    (folder.parent / "urgent.sh").write_text(sleep)
    urgent = ("-p", "urgent", "-N8", "--exclusive", "--output=/dev/null")
    devcluster.submit(folder.parent / "urgent.sh", *urgent)
    finish(process, folder)
    reasons = [event.reason for event in ends(folder)]
    assert reasons == ["signal USR2", "requeued", "requeued", "preempted", "finished"]
    steps = [(event.event, event.step) for event in read_attempts(folder)]
    assert [s for e, s in steps if e == "end"][:-1] == [s for e, s in steps if e == "start"][1:]
    assert samples_by_step(folder) == samples_by_step(reference)
    assert_same_weights(folder, reference)


def test_other_numbers_of_hosts_go_on_with_the_same_samples_and_then_evaluate(
    devcluster: DevCluster, folder: Path, reference: Path
):
    words = (*SLURM, "--then", "evaluate --subnet smallest --images 1 --prompt box")
    process = launch(folder, "--nodes", "2", *words, env=devcluster.env)
    job = job_of(folder)
    wait_for_attempt(folder, 1)
    (folder / "cancel").touch()
    devcluster.run(["scancel", "--signal=USR2", job])
    assert process.wait(timeout=PATIENCE_S) == 1
    assert ends(folder)[-1].reason == "cancelled"

    def nothing_left() -> bool:
        return devcluster.run(["squeue", "--noheader"]).strip() == ""

    wait_for(nothing_left, 90, what="Slurm's removal of a job whose dependency failed")
    assert not (folder / "results").exists()
    finish(launch(folder, "--nodes", "4", *words, env=devcluster.env), folder)
    assert [event.world_size for event in ends(folder)] == [2, 4]
    assert samples_by_step(folder) == samples_by_step(reference)
    assert_same_losses(folder, reference)
    assert ", after it: evaluate --subnet smallest" in printed(folder)
    score = f"evaluate-*-step-{ends(folder)[-1].step:06d}.json"

    def scored() -> bool:
        return list(folder.glob(f"results/{score}")) != []

    wait_for(scored, PATIENCE_S, what="the evaluation")


def test_a_search_follows_a_training_with_nodes_of_its_own(
    devcluster: DevCluster, folder: Path, reference: Path
):
    """The training is complete already: it gets no job, and the search's waits for none."""
    shutil.copytree(reference, folder)
    search = "search --name after --trials 4 --chunk 2 --nodes 2 --threads 1 --device cpu"
    words = ("--nodes", "1", *SLURM, "--then", f"{search} --protocol.images 1")
    assert launch(folder, *words, env=devcluster.env).wait(PATIENCE_S) == 0, printed(folder)
    assert "this run is complete at step" in printed(folder)
    assert f": {search}" in printed(folder)
    wait_for((folder / "results/after/report.html").is_file, PATIENCE_S, what="the search")
    assert len(read_journal(folder / "results/after/journal.jsonl")) == 4

    def over() -> bool:
        return devcluster.run(["squeue", "--noheader"]).strip() == ""

    wait_for(over, 60, what="the end of the search's job")
