"""What cannot be searched is refused with a remedy, and nothing is written or overwritten."""

from __future__ import annotations

import math
import shutil
import sys

import pytest
import torch

from supersam.config import UserError
from supersam.search import evaluator as objective
from supersam.search import read_journal
from supersam.search.folder import prepare_folder
from supersam.search.inputs import find_inputs
from supersam.search.searchers import baselines as plain
from tests.search.tiny_search import make_run, make_shards, search, tiny_search


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"constraint": ["params_m<=1"]}, "the smallest subnet has params_m=4.69"),
        ({"constraint": ["params_m<=4.7", "flops_g>=0.078"]}, "the nearest has params_m="),
        ({"checkpoint": "99"}, "has no checkpoint '99'; it has step-000007"),
        ({"checkpoint": "initial"}, "use last, best or a step number"),
        ({"data": ["/nowhere"]}, "/nowhere"),
        ({"run": "/nowhere"}, "/nowhere is not a run"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_nothing_is_written(run, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        search(run, tmp_path / "s", **changes)
    assert not (tmp_path / "s").exists()


def test_a_searcher_whose_library_is_missing_is_refused_and_nothing_is_written(
    run, tmp_path, monkeypatch
):
    monkeypatch.delitem(sys.modules, "supersam.search.searchers.optuna_tpe", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="--searcher optuna needs optuna; install it with"):
        search(run, tmp_path / "s", searcher="optuna")
    assert not (tmp_path / "s").exists()


def test_a_space_too_large_to_enumerate_is_refused_and_nothing_is_written(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(plain, "_MOST", 10)
    with pytest.raises(UserError, match="too many for --searcher exhaustive"):
        search(run, tmp_path / "s", searcher="exhaustive")
    assert not (tmp_path / "s").exists()


def test_a_folder_of_images_counts_once(run, tmp_path):
    val = run.data.val[0]
    twice = [str(val), str(val / ".." / val.name)]
    with pytest.raises(UserError, match="the evaluation data name .* twice"):
        search(run, tmp_path / "s", data=twice)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("peak_mem_mib<=0.5", "is impossible on .*: the smallest subnet has peak_mem_mib="),
        ("latency_ms>=1e9", "the largest subnet has latency_ms=.*set it beyond that"),
    ],
)
def test_an_impossible_measured_limit_ends_the_search_when_the_references_are_known(
    run, tmp_path, limit, words
):
    with pytest.raises(UserError, match=words):
        search(run, tmp_path / "s", constraint=[limit])
    assert len(read_journal(tmp_path / "s" / "journal.jsonl")) == 2


@pytest.mark.parametrize("resolution", ["logits", "original"])
def test_a_diverged_model_ends_the_search(shards, tmp_path, resolution):
    diverged = make_run(tmp_path / "run", shards, spread=math.nan)
    with pytest.raises(UserError, match="predicted NaN or infinity for image"):
        search(diverged, tmp_path / "s", protocol={"resolution": resolution})
    assert read_journal(tmp_path / "s" / "journal.jsonl") == []


def test_a_device_that_is_not_here_is_refused(run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="PyTorch sees no GPU here; take auto or cpu"):
        search(run, tmp_path / "s", device="cuda")
    assert not (tmp_path / "s").exists()


def test_a_run_without_a_checkpoint_is_refused(run, shards, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "progress.json").unlink()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        search(run, tmp_path / "s", run=str(tmp_path / "run"))


def test_a_folder_of_another_search_is_left_alone(run, shards, tmp_path, undisturbed):
    before = {p.name: p.read_bytes() for p in undisturbed.folder.iterdir() if p.is_file()}
    other = make_run(tmp_path / "other", shards, model={"depth": 3, "global_layers": [1]})
    make_shards(tmp_path / "val", images=4, seed=5)
    for changed, words in (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"protocol": {"images": 5}}, r"in\n  protocol\.images: 6 -> 5\nChoose"),
        ({"run": str(other.folder)}, "another checkpoint"),
        ({"data": [str(tmp_path / "val")]}, "other evaluation data"),
    ):
        with pytest.raises(UserError, match=words):
            search(run, undisturbed.folder, **changed)
    assert {p.name: p.read_bytes() for p in undisturbed.folder.iterdir() if p.is_file()} == before


def test_what_is_measured_is_measured_in_one_way(run, tmp_path):
    """Closed-form costs are the same wherever a search goes on; a latency is not."""
    latency = {"constraint": ["latency_ms<=1e6"], "latency": {"repeats": 1, "warmup": 1}}
    elsewhere = {"threads": 2, "cluster": {"evaluators_per_node": 3}}
    for measured in ({}, latency):
        asked = tiny_search(run, tmp_path / str(len(measured)), **measured)
        inputs = find_inputs(asked)
        prepare_folder(asked, inputs)
        other = tiny_search(run, asked.folder, **measured, **elsewhere)
        if not measured:
            prepare_folder(other, inputs)
            continue
        with pytest.raises(UserError, match=r"threads: 1 -> 2\n  evaluators_per_node: None -> 3"):
            prepare_folder(other, inputs)


def test_what_is_measured_is_measured_on_one_kind_of_device(run, tmp_path, monkeypatch):
    for limits in ((), ("latency_ms<=1e6",)):
        folder = tmp_path / str(len(limits))
        changes = {"constraint": limits, "latency": {"repeats": 1, "warmup": 1}}
        monkeypatch.setattr(objective, "describe_device", lambda _: "a fast one")
        search(run, folder, trials=4, **changes)
        before = (folder / "journal.jsonl").read_bytes()
        monkeypatch.setattr(objective, "describe_device", lambda _: "a slow one")
        if not limits:
            search(run, folder, trials=6, **changes)
            assert {t.device for t in read_journal(folder / "journal.jsonl")} == {
                "a fast one", "a slow one"
            }  # fmt: skip
            continue
        words = r"latency_ms on .* \(a slow one\) and on .* \(a fast one\) do not compare"
        with pytest.raises(UserError, match=words):
            search(run, folder, trials=6, **changes)
        assert (folder / "journal.jsonl").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no search"):
        search(run, tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["thesis.txt"]
