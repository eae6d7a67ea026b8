"""Selection and report apart: the front on images that no proposal saw."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from supersam.config import SearchRun, UserError
from supersam.data.shards import ShardReader
from supersam.search import Trial, read_journal
from supersam.search.evaluator import SubnetEvaluator
from supersam.search.final_score import FinalScore
from supersam.search.folder import is_complete, read_record
from supersam.search.front import read_final_scores, read_front
from supersam.search.image_set import ImageSet
from supersam.search.images import load_images
from supersam.search.inputs import find_inputs
from tests.search.tiny_search import make_shards, search, tiny_search
from tests.search.trials import make_trial


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("other") / "final", images=6, seed=3)


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    return search(run, tmp_path_factory.mktemp("plain") / "s")


@pytest.fixture(scope="module")
def measured(run, other, tmp_path_factory):
    return search(run, tmp_path_factory.mktemp("measured") / "s", final_data=[str(other)])


def numbers(trials):
    return [(t.key, t.spec, t.stage, dict(t.metrics), t.by_group) for t in trials]


def journal(folder, name="journal.jsonl"):
    return sorted(numbers(read_journal(folder / name)), key=lambda row: row[0])


def test_final_data_leaves_selection_and_journal_as_they_are(plain, measured):
    assert journal(measured.folder) == journal(plain.folder)
    assert numbers(read_front(measured.folder)) == numbers(read_front(plain.folder))


def test_each_subnet_of_the_front_has_both_numbers_by_name(plain, measured, other):
    scores = read_final_scores(measured.folder)
    assert set(scores) == {trial.spec.key() for trial in measured.front}
    assert {score.num_images for score in scores.values()} == {6}
    entries = json.loads((measured.folder / "pareto.json").read_text())
    assert any(entry["final"]["miou"] != entry["metrics"]["miou"] for entry in entries)
    record = read_record(measured.folder)
    assert record["final"]["folders"] == [str(other)]
    assert record["final"]["seen_in_training"]["seen"] is False
    assert set(record["final_references"]) == {"largest", "smallest"}
    rows = list(csv.DictReader((measured.folder / "pareto.csv").open()))
    assert [float(row["final_miou"]) for row in rows] == [e["final"]["miou"] for e in entries]
    assert read_final_scores(plain.folder) == {}  # as in a folder of an earlier version
    assert read_record(plain.folder)["final"] is None


def test_it_is_measured_as_an_evaluator_of_those_images_says(run, measured, other):
    asked = tiny_search(run, measured.folder, data=[str(other)])
    judge = SubnetEvaluator(asked, find_inputs(asked).source)
    for trial in read_journal(measured.folder / "final.jsonl")[:2]:
        (again,) = judge.evaluate(chunk_of(trial))
        assert dict(again.metrics) == dict(trial.metrics)


def chunk_of(trial):
    from supersam.search.evaluator import Chunk, EvalRequest

    return Chunk((EvalRequest(trial.key, trial.spec, "measured", trial.searcher, 0, 0),))


def test_a_search_that_is_done_is_measured_later_and_evaluates_nothing_else(
    run, other, tmp_path, monkeypatch
):
    first = search(run, tmp_path / "s")
    asked = tiny_search(run, first.folder, final_data=[str(other)])
    assert not is_complete(asked)
    before = (first.folder / "journal.jsonl").read_bytes()
    evaluate, looked_at = SubnetEvaluator.evaluate, []

    def noting(self, chunk):
        looked_at.extend(request.stage for request in chunk.requests)
        return evaluate(self, chunk)

    monkeypatch.setattr(SubnetEvaluator, "evaluate", noting)
    again = search(run, first.folder, final_data=[str(other)])
    assert set(looked_at) == {"measured"}
    assert (first.folder / "journal.jsonl").read_bytes() == before
    assert len(again.measured) == len(again.front)
    assert is_complete(asked)


def test_a_measurement_that_is_killed_goes_on_and_finds_the_same(
    run, other, measured, tmp_path, monkeypatch
):
    evaluate, left = SubnetEvaluator.evaluate, [2]

    def dying(self, chunk):
        if chunk.requests[0].stage == "measured":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return evaluate(self, chunk)

    monkeypatch.setattr(SubnetEvaluator, "evaluate", dying)
    with pytest.raises(KeyboardInterrupt):
        search(run, tmp_path / "s", final_data=[str(other)])
    assert not read_record(tmp_path / "s")["finished"]
    monkeypatch.undo()
    again = search(run, tmp_path / "s", final_data=[str(other)])
    assert again.finished
    assert journal(again.folder, "final.jsonl") == journal(measured.folder, "final.jsonl")


def test_a_share_keeps_whole_sources_aside(run, tmp_path):
    result = search(run, tmp_path / "s", trials=4, final_share=0.5)
    inputs = find_inputs(tiny_search(run, tmp_path / "s", trials=4, final_share=0.5))
    origins = ShardReader(inputs.selection.folders[0]).origins()
    parts = [origins.group[images.places()] for images in (inputs.selection, inputs.final)]
    assert len(parts[0]) == len(parts[1]) == 4
    assert not np.isin(*parts).any()
    trials = read_journal(result.folder / "journal.jsonl")
    assert {t.num_images for t in trials} == {4}
    assert {t.num_images for t in result.measured.values()} == {4}
    with pytest.raises(UserError, match=r"final_share: 0.5 -> 0.25|other evaluation data"):
        search(run, tmp_path / "s", trials=4, final_share=0.25)


def test_images_that_the_search_selects_on_are_refused_as_final_data(run, tmp_path):
    with pytest.raises(UserError, match="--final-data shares 8 images with the data of the search"):
        search(run, tmp_path / "s", final_data=[str(run.data.val[0])])
    assert not (tmp_path / "s").exists()


def test_final_data_and_a_share_exclude_each_other(run, tmp_path):
    with pytest.raises(ValueError, match="not both"):
        SearchRun(run=run.folder, final_data=(tmp_path,), final_share=0.5)


def test_differences_to_the_largest_are_paired_by_group():
    groups = [(7, 2, 1.0), (8, 1, 0.9), (9, 3, 1.2)]
    largest = make_trial(0, by_group=tuple(groups), stage="measured")
    lower = [(name, count, total - 0.05 * count) for name, count, total in groups]
    small = make_trial(1, by_group=tuple(lower), stage="measured", miou=0.4667)
    score = FinalScore.of(small, largest)
    assert score.less_largest == pytest.approx(-0.05)
    assert score.less_largest_interval == pytest.approx((-0.05, -0.05))
    assert FinalScore.from_dict(score.as_dict()) == score
    assert Trial.from_dict(json.loads(json.dumps(small.to_dict()))) == small
    assert FinalScore.of(largest, None).less_largest is None


def test_by_default_a_subnet_is_judged_by_point_and_box_alike(run, tmp_path):
    folders = (run.data.val[0],)
    found = {}
    for prompt in (None, "point", "box"):
        protocol = {"images": 6, "images_per_batch": 2, "prompt": prompt}
        asked = tiny_search(run, tmp_path / str(prompt), protocol=protocol)
        assert len(load_images(
            ImageSet(folders), asked.protocol, side=64, device="cpu", originals=False
        )[0].prompts) == (2 if prompt is None else 1)  # fmt: skip
        judge = SubnetEvaluator(asked, find_inputs(asked).source)
        (found[prompt],) = judge.evaluate(chunk_of(make_trial(0, spec=judge._space.largest())))
    both = found[None].metrics
    assert both["miou_point"] == found["point"].metrics["miou"]
    assert both["miou_box"] == found["box"].metrics["miou"]
    assert both["miou"] == pytest.approx((both["miou_point"] + both["miou_box"]) / 2)


def test_a_search_of_an_earlier_version_goes_on_with_its_boxes(run, tmp_path, monkeypatch):
    first = search(run, tmp_path / "s", protocol={"prompt": "box"})
    monkeypatch.setattr(SubnetEvaluator, "evaluate", None)  # nothing is evaluated again
    again = search(run, first.folder)
    assert numbers(again.front) == numbers(first.front)
    with pytest.raises(UserError, match=r"protocol.prompt: box -> both"):
        search(run, first.folder, protocol={"prompt": "both"})
