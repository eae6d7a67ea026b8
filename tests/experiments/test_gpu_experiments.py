"""The experiments for a GPU: every training's flags are ones that launch/train.py takes."""

import argparse

import pytest

from experiments.gpu_experiments import Plan
from supersam.config import TrainRun, parse_cli


@pytest.fixture
def plan(tmp_path) -> Plan:
    args = argparse.Namespace(
        smoke=False, minutes=5.0, data=tmp_path / "data", out=tmp_path, work=tmp_path / "work"
    )
    (tmp_path / "work").mkdir()
    log = "00:00:00 I step 20  loss: largest 1.0  lr 1e-3  800.0 images/s\n"
    (tmp_path / "work" / "nuclei_start.log").write_text(log)
    return Plan(args)


def words(job):
    return [str(word) for word in (job.command() if callable(job.command) else job.command)]


def test_every_training_is_a_run_that_the_configuration_accepts(plan):
    runs = {}
    for job in plan.jobs():
        python, script, *flags = words(job)
        if script.endswith("launch/train.py"):
            runs[job.name] = parse_cli(TrainRun, flags)
    assert set(runs) == {
        "nuclei_start", "nuclei_model", "streets_model", "nuclei_supernet", "wide_supernet",
    }  # fmt: skip
    for name in ("nuclei_start", "nuclei_model", "streets_model"):
        assert runs[name].sandwich.largest_only_steps == runs[name].optim.steps
    for name in ("nuclei_supernet", "wide_supernet"):
        assert runs[name].sandwich.largest_only_steps == 0
        assert runs[name].checkpoint.pin == ()
    assert runs["nuclei_start"].model.checkpoint is None
    assert runs["wide_supernet"].space.preset == "wide"


def test_steps_follow_the_speed_that_was_seen(plan):
    assert plan.pass_s() == pytest.approx(32 / 800)
    fast = plan.steps(until=0.84, passes=3, most=10**6)
    log = plan.work / "nuclei_start.log"
    log.write_text(log.read_text().replace("800.0", "200.0"))
    assert plan.steps(until=0.84, passes=3, most=10**6) == pytest.approx(fast / 4, rel=0.05)


def test_each_job_needs_only_jobs_that_there_are(plan):
    jobs = list(plan.jobs())
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert {name for job in jobs for name in job.after} <= set(names)
