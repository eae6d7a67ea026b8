import os
import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from supersam.cluster.ranked_run import legal_node_counts, require_legal_world
from supersam.cluster.slurm.commands import (
    clean_environment,
    outside_allocation,
    own_job_id,
)
from supersam.cluster.slurm.jobs import SlurmJob, parse_job, read_job
from supersam.cluster.slurm.script import sbatch_text, shell_safe_path
from supersam.config import TrainCluster, TrainRun, UserError
from supersam.config.cluster import minutes

ODD = ["a b", "a\nrm x", "$(id)", "`id`", "a'b", 'a"b', "a\\b", "a#b", "é", ""]


def run_with(**cluster: object) -> TrainRun:
    values = {"data": {"source": "synthetic", "workers": 2}, "run": "/shared/r", "cluster": cluster}
    return TrainRun.model_validate(values)


def options(run: TrainRun) -> dict[str, str]:
    lines = [line for line in sbatch_text(run).splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH "))[0].removeprefix("--") for line in lines]
    return {key: value for key, _, value in (word.partition("=") for word in words)}


@pytest.mark.parametrize("field", ["partition", "account", "qos", "constraint", "exclude", "mem"])
@pytest.mark.parametrize("value", ODD)
def test_a_value_that_could_be_a_command_is_refused(field, value):
    with pytest.raises(ValidationError, match="could be read as a command"):
        TrainCluster.model_validate({field: value})


@pytest.mark.parametrize("value", [v for v in ODD if v])
def test_an_sbatch_value_that_could_be_a_command_is_refused(value):
    with pytest.raises(ValidationError, match="could be read as a command"):
        TrainCluster.model_validate({"sbatch": {"mail-user": value}})


@pytest.mark.parametrize("option", ["wrap=id", "export=ALL", "output=x", "signal=9", "chdir=/"])
def test_options_that_belong_to_the_program_are_refused(option):
    with pytest.raises(ValidationError, match="set by SuperSAM"):
        TrainCluster.model_validate({"sbatch": [option]})


@pytest.mark.parametrize("option", ["mail-type", "-x=1", "Mail=1", "a b=1", "x\ny=1"])
def test_an_sbatch_option_must_be_key_and_value(option):
    with pytest.raises(ValidationError, match="KEY=VALUE"):
        TrainCluster.model_validate({"sbatch": [option]})


@pytest.mark.parametrize("name", ["a\nb", "a'b", "a$(id)", "a%jb", "a`b", "a;b", "a\\b"])
def test_a_run_folder_that_a_script_could_misread_is_refused(name):
    with pytest.raises(UserError, match="rename it"):
        shell_safe_path(Path("/shared") / name)


def test_a_folder_with_blanks_stays_one_word_in_the_script():
    run = run_with(nodes=2).model_copy(update={"run": Path("/shared/my runs/é")})
    last = sbatch_text(run).splitlines()[-1]
    assert shlex.split(last)[-1] == "/shared/my runs/é/slurm"
    assert options(run)["output"] == "/shared/my runs/é/slurm/%j_0_log.out"


def test_what_was_asked_for_reaches_slurm():
    run = run_with(
        nodes=4,
        gpus_per_node=8,
        partition="long,short",
        time="1-02:00:00",
        mem="64G",
        sbatch={"mail-type": "END", "exclusive": True},
    )
    asked = options(run)
    expected = {"nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8", "mem": "64G"}
    expected |= {"partition": "long,short", "time": "1560", "mail-type": "END"}
    expected |= {"cpus-per-task": "3", "exclusive": "", "requeue": "", "signal": "B:USR2@120"}
    assert expected.items() <= asked.items()
    assert "no-kill" not in asked


def test_a_run_that_may_lose_nodes_keeps_its_allocation():
    assert options(run_with(nodes=4, spare_nodes=1))["nodes"] == "4-5"
    asked = options(run_with(nodes=4, min_nodes=2))
    assert (asked["nodes"], asked["no-kill"]) == ("2-4", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:00", 30), ("00:30", 1), ("02:00:00", 120), ("1-12", 2160), ("1-0:30", 1470)],
)
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert minutes(text) == expected


def test_a_number_of_a_file_is_minutes():
    assert TrainCluster.model_validate({"time": 90}).time == "90"


@pytest.mark.parametrize("value", ["", "1h", "0", "-5", "1:2:3:4", 0, True])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValidationError, match="time"):
        TrainCluster.model_validate({"time": value})


def test_a_new_job_inherits_nothing_of_an_enclosing_one(monkeypatch):
    inherited = {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "mask", "SBATCH_PARTITION": "x"}
    inherited |= {"SRUN_CPUS_PER_TASK": "2", "PMI_RANK": "0", "PMIX_ID": "3"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "PMICKEY": "no"}
    assert clean_environment(inherited | kept) == kept
    monkeypatch.setenv("SLURM_CPU_BIND", "mask")
    with outside_allocation():
        assert "SLURM_CPU_BIND" not in os.environ
    assert os.environ["SLURM_CPU_BIND"] == "mask"


def test_only_world_sizes_that_divide_the_batch_are_legal():
    run = run_with(tasks_per_node=2).model_copy(
        update={"optim": run_with().optim.model_copy(update={"global_batch": 12, "accumulate": 2})}
    )
    assert legal_node_counts(run) == [1, 3]
    require_legal_world(run, 6)
    with pytest.raises(UserError, match=r"4 ranks do not divide .* take 1, 2, 3 or 6 ranks"):
        require_legal_world(run, 4)


def test_the_job_of_a_job_are_read_from_what_slurm_prints():
    line = (
        "JobId=3 JobName=x JobState=PENDING Reason=BeginTime Dependency=(null) Restarts=2 "
        "RunTime=00:10:00 TimeLimit=1-00:20:00 PreemptTime=None"
    )
    job = parse_job(line)
    assert (job.restarts, job.is_active, job.waits_for_begin_time, job.preempted) == (
        2,
        True,
        True,
        False,
    )
    assert job.time_left_s == 86400 + 600
    assert parse_job(line.replace("1-00:20:00", "UNLIMITED")).time_left_s == float("inf")


@pytest.mark.parametrize(
    ("state", "is_active"),
    [
        *[(state, True) for state in ("RUNNING", "SIGNALING", "COMPLETING", "REQUEUED", "STOPPED")],
        *[(state, False) for state in ("COMPLETED", "CANCELLED", "TIMEOUT", "NODE_FAIL")],
    ],
)
def test_a_job_that_is_told_of_its_time_limit_is_not_over(state, is_active):
    """Who follows it would leave, and another of its kind could be submitted."""
    assert parse_job(f"JobId=3 JobState={state} Reason=None").is_active == is_active
    assert SlurmJob("3", state, "", "n1", "").is_active == is_active


def test_an_element_of_an_array_is_not_the_array(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # what the last element sees
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert own_job_id() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert own_job_id() == "7_1"


def test_an_array_is_active_while_one_of_its_elements_is(monkeypatch):
    lines = ["JobId=8 JobState=COMPLETED Reason=None", "JobId=7 JobState=RUNNING Reason=None"]
    monkeypatch.setattr(
        "supersam.cluster.slurm.jobs.run_command", lambda *_: "\n".join(lines) + "\n"
    )
    job = read_job("7")
    assert job is not None
    assert job.is_active
