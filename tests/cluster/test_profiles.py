"""The site profiles are valid, complete, and reach Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from supersam.cluster.plain import main
from supersam.cluster.sbatch import sbatch_text
from supersam.config import ClusterConfig, TrainRun, merge, read_yaml
from tests.paths import ROOT

PROFILES = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
SHOWN = ("partition", "account", "qos", "time", "constraint", "exclude", "cpus_per_task", "mem")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_valid_and_reaches_slurm(profile: Path, tmp_path: Path) -> None:
    values = read_yaml(profile)
    assert set(SHOWN) <= values["cluster"].keys() <= ClusterConfig.model_fields.keys()
    demo = read_yaml(ROOT / "configs" / "train" / "demo.yaml")
    asked = {"run": str(tmp_path / "run"), "cluster": {"nodes": 8, "sbatch": {"mail-type": "END"}}}
    text = sbatch_text(TrainRun.model_validate(merge(demo, values, asked)))
    for option in ("partition", "mem"):
        assert f"#SBATCH --{option}={values['cluster'][option]}" in text
    assert "#SBATCH --mail-type=END" in text


def test_the_plain_script_refuses_a_count_of_nodes_that_does_not_divide_the_batch() -> None:
    demo = ROOT / "configs" / "train" / "demo.yaml"
    with pytest.raises(SystemExit) as refused:
        main(["--config", str(demo), "--nodes", "3", "--tasks-per-node", "1"])
    assert refused.value.code == 2
