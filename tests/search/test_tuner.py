"""Evaluators on a real Ray: how a search that cannot be finished ends, and how hosts are shared."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from supersam.config import SearchRun
from supersam.search import tuner
from tests.paths import ROOT
from tests.patience import PATIENCE_S
from tests.search.tiny_search import make_run


@pytest.fixture(scope="module")
def ends(run, shards, tmp_path_factory) -> dict[str, str]:
    """How searches ended that could not be finished."""
    folder = tmp_path_factory.mktemp("ends")
    diverged = make_run(folder / "diverged", shards, spread=math.nan)
    command = [sys.executable, "-m", "tests.search.failing_searches"]
    done = subprocess.run(
        [*command, *map(str, (run.folder, diverged.folder, folder))],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_evaluator_that_cannot_be_set_up_ends_the_search_and_says_why(ends):
    assert ends["images vanish"].startswith("UserError: ")
    assert "images" in ends["images vanish"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_ends_a_chunk_ends_the_search(ends):
    assert ends["weights are NaN"].startswith("UserError: ")
    assert "predicted NaN or infinity" in ends["weights are NaN"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_chunk_that_loses_every_evaluator_ends_the_search(ends):
    expected = "RuntimeError: a chunk failed 2 times; see Ray's message above; 0 trials"
    assert ends["evaluators die"] == expected


@pytest.mark.parametrize(
    ("asked", "gpus", "count", "each"),
    [
        (None, 0, 1, (16, 0, 1)),
        (3, 0, 3, (16 / 3, 0, 3)),
        (None, 4, 4, (4, 1, 1)),
        (3, 2, 3, (16 / 3, 1 / 2, 2)),
        (3, 4, 3, (16 / 3, 1, 1)),
        (8, 4, 8, (2, 1 / 2, 2)),
    ],
)
def test_evaluators_share_the_gpus_of_a_host(tmp_path, asked, gpus, count, each):
    run = SearchRun(run=tmp_path, cluster={"evaluators_per_node": asked})
    nodes = [{"CPU": 16.0, "GPU": float(gpus)}] * 2
    found = tuner.plan_evaluators(run, nodes)
    assert (found.count, found.per_node) == (2 * count, count)
    assert (found.cpus, found.gpus, found.sharers) == each
    assert found.per_node <= found.sharers * max(1, gpus)


def test_evaluators_on_cpus_leave_the_gpus_alone(tmp_path):
    nodes = [{"CPU": 16.0, "GPU": 4.0}]
    assert tuner.plan_evaluators(SearchRun(run=tmp_path, device="cpu"), nodes).gpus == 0
