"""A search over four hosts of a real Slurm cluster, with hosts that die under it."""

from __future__ import annotations

import json
import subprocess
import sys
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
NOTICE = "the time of this job ends soon"


@pytest.fixture(scope="module")
def searched_run(tmp_path_factory):
    base = tmp_path_factory.mktemp("search")
    make_shards(base / "shards" / "train", images=4, seed=0)
    make_shards(base / "shards" / "val", images=32, seed=1)
    return make_run(base / "run", base / "shards")


class Search:
    """`launch/search.py` on a cluster, followed to its end."""

    def __init__(self, cluster: DevCluster, run: Path, out: Path, *flags: str) -> None:
        """It stands at its gate until that is opened."""
        self.out = out
        words = ["--run", run, "--out", out, "--trials", SIZE["trials"], "--chunk", SIZE["chunk"]]
        words += ["--population", SIZE["population"], "--protocol.images", 12]
        words += ["--protocol.images-per-batch", 2, "--threads", 1, "--device", "cpu"]
        words += ["--nodes", 4, "--wait", "--time", LIMIT_MIN, *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.gated_search", *map(str, words)],
            env={**cluster.env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def open_gate(self, trials: int = 10**9) -> None:
        """Let chunks begin while the journal has fewer than `trials`; without end by default."""
        self.out.mkdir(exist_ok=True)
        partial = self.out / "gate.partial"
        partial.write_text(str(trials))
        partial.rename(self.out / "gate")

    def logged(self) -> str:
        """What its batch steps printed."""
        return "".join(log.read_text() for log in sorted(self.out.glob("slurm/*_log.out")))

    def wait_for_submission(self) -> None:
        """Until its folder is prepared and its job is known."""

        def submitted() -> bool:
            return (self.out / "job.json").is_file() or self.process.poll() is not None

        wait_for(submitted, START_S, what="submitted")
        assert self.process.poll() is None, self.process.communicate()[0][-3000:]

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
    broken.wait_for_submission()
    broken.open_gate(8)
    broken.wait_for_trials(8)
    hosts = devcluster.run(["squeue", "--noheader", "--format=%N"]).strip()
    assert hosts == "n[1-4]"
    devcluster.kill("n3")
    before = broken.num_trials()
    broken.open_gate(before + 8)
    broken.wait_for_trials(before + 8)  # it was requeued without n3, and went on
    assert broken.num_trials() < SIZE["trials"]
    devcluster.kill("n1")  # the driver and the head of the Ray
    undisturbed = search(searched_run, tmp_path / "undisturbed", **SIZE)  # Slurm notices meanwhile
    broken.open_gate()
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
    whole.wait_for_submission()
    whole.open_gate()
    wait_for((tmp_path / "s" / "report.html").is_file, START_S, what="the end")
    wait_for(
        lambda: devcluster.run(["squeue", "--noheader"]) == "", 60, what="the allocation's release"
    )
    whole.end()
    assert not list((tmp_path / "s" / "ray").iterdir())  # where the head was, and its token


def test_a_sweep_is_one_array_and_one_comparison(devcluster: DevCluster, searched_run, tmp_path):
    flags = ["--nodes", 1, "--trials", 8, "--population", 8, "--sweep.searchers", "random", "nsga2"]
    sweep = Search(devcluster, searched_run.folder, tmp_path / "w", *map(str, flags))
    sweep.wait_for_submission()
    listed = ["squeue", "--noheader", "--array", "--format=%i"]
    wait_for(lambda: len(devcluster.run(listed).split()) == 2, START_S, what="two elements")
    first, second = devcluster.run(listed).split()
    assert first.partition("_")[0] == second.partition("_")[0]
    for file in (tmp_path / "w").glob("*/search.yaml"):
        (file.parent / "gate").write_text(str(10**9))
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
    """First while its evaluators do not come to an end, as if they loaded; then as it should be."""
    flags = ["--nodes", 2, "--signal-delay-s", 110]
    cut = Search(devcluster, searched_run.folder, tmp_path / "t", *map(str, flags))
    cut.wait_for_submission()
    job = devcluster.run(["squeue", "--noheader", "--format=%i"]).strip()
    restarts = ["squeue", "--noheader", "--Format=RestartCnt"]
    evaluators = "2 evaluators on 2 hosts"
    for start in (1, 2):
        wait_for(lambda n=start: cut.logged().count(evaluators) == n, START_S, what="evaluators")
        if start == 2:
            cut.open_gate(4)
            cut.wait_for_trials(4)
        devcluster.end_time_soon(job)
        wait_for(lambda n=start: cut.logged().count(NOTICE) == n, START_S, what="the notice")
        if start == 2:
            cut.open_gate(cut.num_trials() + 1)  # chunks under way are finished
        wait_for(
            lambda n=start: devcluster.run(restarts).strip() == str(n), START_S, what="a requeue"
        )
        devcluster.set_limit(job, LIMIT_MIN)
    assert cut.num_trials() >= 4
    starts = (tmp_path / "t" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["trials"] for line in starts][:2] == [0, 0]
    cut.open_gate()
    cut.end()
    journal = read_journal(tmp_path / "t" / "journal.jsonl")
    assert len({trial.key for trial in journal}) == len(journal)
