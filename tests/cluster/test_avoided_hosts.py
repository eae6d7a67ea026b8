"""Hosts on which ranks hung are left out where the others suffice."""

from __future__ import annotations

from pathlib import Path

import pytest

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.avoided_hosts import choose_avoided, hosts_to_avoid, merge_hosts
from supersam.config import TrainRun
from supersam.health.watchdog import HangReport, record_hang

SINFO = """\
batch|batch*|n1|idle
urgent|urgent|n1|idle
batch|batch*|n2|mixed
batch|batch*|n3|down*
batch|batch*|n4|allocated
"""


@pytest.mark.parametrize(
    ("hung", "needed", "expected"),
    [
        ({"b"}, 2, ["b"]),
        ({"b"}, 3, []),
        ({"a", "b"}, 1, ["a", "b"]),
        ({"z"}, 1, []),
        (set(), 1, []),
    ],
)
def test_a_host_is_left_out_only_where_the_others_suffice(hung, needed, expected):
    assert choose_avoided(hung, ["a", "b", "c"], needed=needed) == expected


def test_what_the_user_excludes_stays_excluded():
    assert merge_hosts("n[1,3]", ["n7", "n8"]) == "n[1,3],n7,n8"
    assert merge_hosts(None, ["n7"]) == "n7"


@pytest.fixture
def hosts_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hosts that a run of 2 nodes avoids after a rank hung on n2."""

    def answer(*words: str) -> str:
        return {"sinfo": SINFO, "scontrol": "n1\n"}[words[0]]

    monkeypatch.setattr(slurm, "run_command", answer)

    def ask(**cluster: object) -> list[str]:
        values = {"data": {"source": "synthetic"}, "run": tmp_path / "run"}
        run = TrainRun.model_validate({**values, "cluster": {"nodes": 2, **cluster}})
        run.folder.mkdir(exist_ok=True)
        record_hang(run.folder, HangReport(1, "n2", "rank 1 on n2 hangs"), step=3, attempt=1)
        return hosts_to_avoid(run, run.cluster.partition)

    return ask


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, ["n2"]),
        ({"partition": "batch"}, ["n2"]),
        ({"partition": "urgent"}, []),  # n2 is not there
        ({"nodes": 3}, []),  # n3 is down: two are left
        ({"exclude": "n1"}, []),  # by the user: one is left
        ({"nodes": 3, "min_nodes": 2}, ["n2"]),
        ({"constraint": "gpu"}, []),  # which of the others have it is not known
        ({"sbatch": ["nodelist=n1,n2"]}, []),
    ],
)
def test_a_job_avoids_hosts_that_hung_where_it_can(hosts_of, cluster, expected):
    assert hosts_of(**cluster) == expected


def test_hosts_that_hung_twice_in_other_runs_are_avoided_by_a_new_one(hosts_of, tmp_path: Path):
    assert hosts_of() == ["n2"]
    values = {"data": {"source": "synthetic"}, "run": tmp_path / "new", "cluster": {"nodes": 1}}
    new = TrainRun.model_validate(values)
    assert hosts_to_avoid(new, None) == []
    assert hosts_of() == ["n2"]
    assert hosts_to_avoid(new, None) == ["n2"]
