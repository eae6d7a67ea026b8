from __future__ import annotations

import csv
import json

import pytest

from supersam.cluster.slurm.jobs import JobQueue
from supersam.search.sweep import compare, expand, format_sweep, read_progress, volume_curves
from supersam.status.search import read_searches
from tests.search.tiny_search import search, tiny_search

SWEEP = {"searchers": ["random", "nsga2"], "constraints": ["params_m<=4.72"], "seeds": [0, 1]}


def test_a_sweep_is_every_searcher_with_every_constraint_and_seed(run, tmp_path):
    searches = expand(tiny_search(run, tmp_path / "sweep", sweep=SWEEP))
    assert [s.name for s in searches] == [
        "random-params_m_le_4.72-seed0",
        "random-params_m_le_4.72-seed1",
        "nsga2-params_m_le_4.72-seed0",
        "nsga2-params_m_le_4.72-seed1",
    ]
    assert len({s.folder for s in searches}) == 4
    assert all(s.sweep.is_empty and s.constraint == ("params_m<=4.72",) for s in searches)


def test_every_search_of_a_sweep_has_a_folder_of_its_own(run, tmp_path):
    sweep = {"constraints": ["params_m<=4.75", "params_m>=4.75"]}
    first, second = expand(tiny_search(run, tmp_path / "sweep", sweep=sweep))
    assert first.folder != second.folder


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"seeds": [0, 1, 0]}, "seeds hold 0 twice"),
        ({"searchers": ["random", "random"]}, "searchers hold random twice"),
        ({"constraints": ["params_m<=45", "params_m <= 45.0"]}, "constraints hold params_m <= 45"),
    ],
)
def test_a_sweep_names_each_choice_once(run, tmp_path, sweep, words):
    with pytest.raises(ValueError, match=words):
        tiny_search(run, tmp_path / "sweep", sweep=sweep)


def test_searches_are_compared_in_one_table(run, tmp_path):
    asked = tiny_search(run, tmp_path / "sweep", sweep=SWEEP, trials=4)
    searches = expand(asked)
    for one in searches[:2]:
        search(run, one.folder, trials=4, seed=one.seed, searcher=one.searcher,
               constraint=list(one.constraint))  # fmt: skip
    begun = read_progress(searches)
    rows = compare(asked.folder, begun, volume_curves(begun))
    assert [row.name for row in rows] == [one.name for one in searches[:2]]
    assert all(row.finished and 0 < row.hypervolume <= 1 for row in rows)
    saved = json.loads((asked.folder / "sweep.json").read_text())["searches"]
    assert [row["trials"] for row in saved] == [4, 4]
    table = list(csv.DictReader((asked.folder / "sweep.csv").open()))
    assert [row["seed"] for row in table] == ["0", "1"]
    told = read_searches([one.folder for one in searches[:2]], JobQueue())
    for row, status in zip(rows, told, strict=True):
        assert (row.trials, row.front, row.best_miou) == (
            status.trials,
            status.front,
            status.best_miou,
        )
    assert format_sweep(rows).count("\n") == 2
