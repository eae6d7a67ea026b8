"""The site profiles are valid, complete, and reach Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supersam.cluster.slurm.sbatch_entry import main
from supersam.cluster.slurm.script import sbatch_text
from supersam.config import DEMO, TrainCluster, TrainRun, merge, parse_cli, read_yaml
from tests.paths import ROOT

PROFILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
SHOWN = ("partition", "account", "qos", "time", "constraint", "exclude", "cpus_per_task", "mem")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_valid_and_reaches_slurm(profile: Path, tmp_path: Path) -> None:
    values = read_yaml(profile)
    assert set(SHOWN) <= values["cluster"].keys() <= TrainCluster.model_fields.keys()
    demo = read_yaml(ROOT / "configs" / "train" / "demo.yaml")
    asked = {"run": str(tmp_path / "run"), "cluster": {"nodes": 8, "sbatch": {"mail-type": "END"}}}
    text = sbatch_text(TrainRun.model_validate(merge(demo, values, asked)))
    for option in ("partition", "mem"):
        assert f"#SBATCH --{option}={values['cluster'][option]}" in text
    assert "#SBATCH --mail-type=END" in text


def test_the_plain_script_refuses_a_count_of_nodes_that_does_not_divide_the_batch() -> None:
    with pytest.raises(SystemExit) as refused:
        main(["3", "1", "2", "--config", str(DEMO)])
    assert refused.value.code == 2


def test_the_plain_script_takes_the_flags_of_a_training_and_without_any_its_demo(
    monkeypatch, tmp_path: Path, capsys
) -> None:
    prepared: list[TrainRun] = []
    monkeypatch.setattr("supersam.cluster.slurm.sbatch_entry.prepare_run_folder", prepared.append)
    monkeypatch.setattr("supersam.cluster.slurm.sbatch_entry.snapshot_code", lambda _: None)
    monkeypatch.setattr("supersam.cluster.slurm.sbatch_entry.Supervisor", lambda _: lambda: None)
    umask = os.umask(0o022)
    for flags in ([], ["--optim.steps", "9"]):
        main(["2", "1", "3", *flags])
    os.umask(umask)
    demo = parse_cli(TrainRun, [], default_config=DEMO)
    assert [run.name for run in prepared] == [demo.name, demo.name]
    assert [run.optim.steps for run in prepared] == [demo.optim.steps, 9]
    assert {(r.cluster.nodes, r.cluster.cpus_per_task) for r in prepared} == {(2, 3)}
    with pytest.raises(SystemExit) as refused:
        main(["2", "1", "3", "--run", str(tmp_path / "absent")])
    assert refused.value.code == 2
    assert "no run " in capsys.readouterr().err
