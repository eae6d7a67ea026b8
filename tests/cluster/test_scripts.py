"""Scripts as a shell reads them: no value becomes a command, no pickle of others is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from supersam.cluster.follow_up import run_follow_up, script_text
from supersam.cluster.follow_up_process import main
from supersam.cluster.launcher import submit
from supersam.cluster.slurm.script import sbatch_text
from supersam.config import TrainCluster, TrainRun
from tests.patience import PATIENCE_S

NASTY = ["$(touch hit)", "`touch hit`", "'; touch hit; '", '"; touch hit; "', "a b", "$HOME", "*"]


def run_of(folder: Path, **cluster: object) -> TrainRun:
    values = {"data": {"source": "synthetic"}, "run": folder, "cluster": {"nodes": 2, **cluster}}
    return TrainRun.model_validate(values)


def execute(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash"],
        input=script,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scripts start a program that prints the words it got, in place of Python."""
    program = tmp_path / "words"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("word", NASTY)
def test_the_words_of_what_follows_reach_it_as_they_are(tmp_path: Path, word: str):
    folder = tmp_path / "a run"
    (folder / "code").mkdir(parents=True)
    quoted = "'" + word.replace("'", "'\\''") + "'"
    run = run_of(folder, then=f"evaluate --data {quoted} --images 3")
    text = script_text(run, "17")
    done = execute(text, tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["evaluate", "--data", word, "--images", "3"]
    assert done.stdout.splitlines()[-5:] == [f"<{w}>" for w in words]
    assert not list(tmp_path.rglob("hit"))
    assert "#SBATCH --dependency=afterok:17" in text
    assert "#SBATCH --kill-on-invalid-dep=yes" in text
    assert "#SBATCH --nodes=1" in text


def test_what_follows_gets_one_gpu_where_the_training_has_some(tmp_path: Path):
    text = script_text(run_of(tmp_path, then="evaluate", gpus_per_node=8, partition="gpu"), "17")
    assert "#SBATCH --gpus-per-node=1" in text
    assert "#SBATCH --partition=gpu" in text
    assert "B:USR2" not in text


def test_a_search_that_follows_has_its_own_nodes_and_the_site_of_the_training(tmp_path: Path):
    then = "search --nodes 4 --evaluators-per-node 2 --cpus-per-task 3 --trials 9"
    text = script_text(run_of(tmp_path, then=then, nodes=8, partition="gpu", qos="night"), "17")
    for option in ("nodes=4", "ntasks-per-node=1", "cpus-per-task=6", "partition=gpu"):
        assert f"#SBATCH --{option}" in text
    assert "#SBATCH --qos=night" in text
    assert "#SBATCH --signal=B:USR2@" in text  # it saves its journal and goes on
    assert "--no-kill" not in text  # a lost host ends it, and Slurm starts it anew
    assert "--dependency=afterok:17" in text


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("destroy", "is not one of evaluate, search"),
        ("evaluate --run x", "takes no --run"),
        ("search --sweep.seeds 1 2", "takes one search"),
    ],
)
def test_a_command_that_cannot_follow_is_refused_before_anything_is_written(
    tmp_path: Path, then: str, message: str, capsys: pytest.CaptureFixture[str]
):
    run = run_of(tmp_path / "run", then=then, cluster="inline")
    assert submit(run) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_flag_that_what_follows_does_not_know_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit) as refused:
        submit(run_of(tmp_path / "run", then="evaluate --subnt largest", cluster="inline"))
    assert refused.value.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("then", ["", "evaluate\nrm x", "evaluate 'x", "evaluate \x1b[2J"])
def test_a_command_that_is_no_line_of_words_is_refused(then: str):
    with pytest.raises(ValidationError):
        TrainCluster.model_validate({"then": then})


@pytest.mark.parametrize("name", [*NASTY, "a\n", "a\nrm x", "-x", "a'b", "", "é"])
def test_a_name_that_is_more_than_a_name_is_refused(name: str):
    with pytest.raises(ValidationError):
        TrainRun.model_validate({"data": {"source": "synthetic"}, "name": name})


def test_nothing_follows_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = os.umask(0o022)
    try:
        assert main(tmp_path, ["evaluate"], in_job=False) == 2
    finally:
        os.umask(before)
    assert f"error: {tmp_path} holds no checkpoint to evaluate" in capsys.readouterr().err


def test_what_follows_here_says_nothing_but_its_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert run_follow_up(run_of(tmp_path, then="evaluate")) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: {tmp_path} holds no checkpoint to evaluate")
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(("mode", "starts"), [(0o700, True), (0o755, False), (0o770, False)])
def test_pickles_are_read_from_a_folder_of_the_users_alone(tmp_path: Path, mode: int, starts: bool):
    folder = tmp_path / "run"
    for name in ("code", "slurm"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm").chmod(mode)
    done = execute(sbatch_text(run_of(folder)), tmp_path)
    assert (f"<{folder / 'slurm'}>" in done.stdout) == starts
    assert ("must belong to you alone" in done.stderr) != starts
    assert (done.returncode == 0) == starts


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, so it needs root")
@pytest.mark.usefixtures("echo")
def test_pickles_of_another_user_are_not_read(tmp_path: Path):
    folder = tmp_path / "run"
    for name in ("code", "slurm"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm").chmod(0o700)
    os.chown(folder / "slurm", 65534, 65534)
    done = execute(sbatch_text(run_of(folder)), tmp_path)
    assert done.returncode == 1
    assert "must belong to you alone" in done.stderr


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path):
    done = execute(sbatch_text(run_of(tmp_path / "absent")), tmp_path)
    assert done.returncode == 2
    assert "does not see" in done.stderr
