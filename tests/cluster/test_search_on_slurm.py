"""A search over four hosts of a real Slurm cluster, with hosts that die under it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from supersam.search import read_journal
from tests.cluster.handle import DevCluster, wait_for
from tests.paths import ROOT
from tests.search.tiny_search import make_run, make_shards, search

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

SIZE = {"trials": 48, "population": 8, "chunk": 4, "protocol": {"images": 12}}
LIMIT_MIN = 30
START_S = 480


@pytest.fixture(scope="module")
def searched_run(tmp_path_factory):
    base = tmp_path_factory.mktemp("search")
    make_shards(base / "shards" / "train", images=4, seed=0)
    make_shards(base / "shards" / "val", images=32, seed=1)
    return make_run(base / "run", base / "shards")


class Search:
    """`launch/search.py` on a cluster, followed to its end."""

    def __init__(self, cluster: DevCluster, run: Path, out: Path, *flags: str) -> None:
        self.out = out
        words = ["--run", run, "--out", out, "--trials", SIZE["trials"], "--chunk", SIZE["chunk"]]
        words += ["--population", SIZE["population"], "--protocol.images", 12]
        words += ["--protocol.images-per-batch", 2, "--threads", 1, "--device", "cpu"]
        words += ["--nodes", 4, "--wait", "--time", LIMIT_MIN, *flags]
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "launch" / "search.py", *map(str, words)],
            env={**cluster.env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def num_trials(self) -> int:
        journal = self.out / "journal.jsonl"
        return len(read_journal(journal)) if journal.is_file() else 0

    def wait_for_trials(self, count: int) -> None:
        def reached() -> bool:
            return self.num_trials() >= count or self.process.poll() is not None

        wait_for(reached, START_S, what=f"{count} trials")
        assert self.process.poll() is None, self.process.communicate()[0][-3000:]

    def end(self) -> str:
        output, _ = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, output[-4000:]
        return output


def test_a_search_outlives_a_worker_and_the_head_and_finds_the_same(
    devcluster: DevCluster, searched_run, tmp_path
):
    broken = Search(devcluster, searched_run.folder, tmp_path / "broken")
    broken.wait_for_trials(8)
    hosts = devcluster.run(["squeue", "--noheader", "--format=%N"]).strip()
    assert hosts == "n[1-4]"
    devcluster.kill("n3")
    before = broken.num_trials()
    broken.wait_for_trials(before + 8)  # it was requeued without n3, and went on
    devcluster.kill("n1")  # the driver and the head of the Ray
    undisturbed = search(searched_run, tmp_path / "undisturbed", **SIZE)  # Slurm notices meanwhile
    broken.end()
    journal = read_journal(tmp_path / "broken" / "journal.jsonl")
    lines = (tmp_path / "broken" / "journal.jsonl").read_text().splitlines()
    keys = Counter(trial.key for trial in journal)
    assert set(keys.values()) == {1}
    assert len([line for line in lines if '"key"' in line]) == len(journal)
    expected = read_journal(undisturbed.folder / "journal.jsonl")
    assert set(keys) == {trial.key for trial in expected}
    found = [(t["key"], t["metrics"]) for t in _front(tmp_path / "broken")]
    assert found == [(t.key, dict(t.metrics)) for t in undisturbed.front]


def _front(folder: Path) -> list[dict]:
    return json.loads((folder / "pareto.json").read_text())


def test_the_allocation_ends_with_the_search_and_its_exit_code(
    devcluster: DevCluster, searched_run, tmp_path
):
    whole = Search(devcluster, searched_run.folder, tmp_path / "s", "--trials", "8")
    whole.wait_for_trials(8)
    wait_for((tmp_path / "s" / "report.html").is_file, START_S, what="the end")
    ended = time.monotonic()
    wait_for(
        lambda: devcluster.run(["squeue", "--noheader"]) == "", 60, what="the allocation's release"
    )
    assert time.monotonic() - ended < 10
    whole.end()
    assert not list((tmp_path / "s" / "ray").iterdir())  # where the head was, and its token


def test_a_sweep_is_one_array_and_one_comparison(devcluster: DevCluster, searched_run, tmp_path):
    flags = ["--nodes", 1, "--trials", 8, "--population", 8, "--sweep.searchers", "random", "nsga2"]
    sweep = Search(devcluster, searched_run.folder, tmp_path / "w", *map(str, flags))
    listed = ["squeue", "--noheader", "--array", "--format=%i"]
    wait_for(lambda: len(devcluster.run(listed).split()) == 2, START_S, what="two elements")
    first, second = devcluster.run(listed).split()
    assert first.partition("_")[0] == second.partition("_")[0]
    output = sweep.end()
    assert "not finished" not in output
    rows = json.loads((tmp_path / "w" / "sweep.json").read_text())["searches"]
    assert [(row["searcher"], row["finished"]) for row in rows] == [
        ("random", True),
        ("nsga2", True),
    ]
    assert min(row["trials"] for row in rows) >= 8 - 2  # a reference may be proposed too
    assert (tmp_path / "w" / "report.html").is_file()


def test_a_search_out_of_time_goes_on_in_another_start(
    devcluster: DevCluster, searched_run, tmp_path
):
    trials = 2000  # more than a minute's worth
    flags = ["--nodes", 2, "--signal-delay-s", 110, "--trials", trials]
    cut = Search(devcluster, searched_run.folder, tmp_path / "t", *map(str, flags))
    cut.wait_for_trials(4)
    job = devcluster.run(["squeue", "--noheader", "--format=%i"]).strip()
    devcluster.end_time_soon(job)
    restarts = ["squeue", "--noheader", "--Format=RestartCnt"]
    wait_for(lambda: devcluster.run(restarts).strip() == "1", START_S, what="a second start")
    devcluster.set_limit(job, LIMIT_MIN)
    before = cut.num_trials()
    assert 0 < before < trials
    cut.wait_for_trials(before + 4)
    devcluster.run(["scancel", "--user", "root"])
    cut.process.communicate(timeout=60)
    journal = read_journal(tmp_path / "t" / "journal.jsonl")
    assert len({trial.key for trial in journal}) == len(journal)
