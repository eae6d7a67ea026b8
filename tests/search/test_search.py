"""What a search finds does not depend on kills, chunks and how often it went on."""

from __future__ import annotations

import json
import resource
import shutil

import numpy as np
import pytest

from supersam.config import UserError, load_run
from supersam.config.search import SearchRun
from supersam.search import Trial, pareto_front, read_journal
from supersam.search.folder import prepare_folder, read_record
from supersam.search.inputs import find_inputs
from supersam.search.searchers.base import Searcher
from supersam.search.searchers.baselines import ExhaustiveSearcher, RandomSearcher
from supersam.search.searchers.evolution import RegularizedSearcher
from tests.search.closed_form import dying
from tests.search.tiny_search import make_run, search, tiny_search
from tests.search.trials import numbers


def test_a_search_leaves_its_journal_front_and_record(undisturbed):
    folder = undisturbed.folder
    trials = read_journal(folder / "journal.jsonl")
    assert len({t.key for t in trials}) == len(trials)
    searched = [t for t in trials if t.batch >= 0]
    assert undisturbed.num_trials == 12
    assert len(searched) >= 12 - 2  # a reference may be proposed too
    record = json.loads((folder / "search.json").read_text())
    assert record["finished"]
    assert record["checkpoint"]["step"] == 7
    assert record["data"]["seen_in_training"]["seen"] is False
    assert set(record["references"]) == {"largest", "smallest"}
    front = [Trial.from_dict(v) for v in json.loads((folder / "pareto.json").read_text())]
    assert numbers(front) == numbers(undisturbed.front)
    assert {t.resolution for t in front} == {"original"}
    assert pareto_front(front, ("miou", "params_m")) == front
    assert list((folder / "tensorboard").glob("events*"))


def test_a_killed_search_goes_on_and_finds_the_same(run, tmp_path, undisturbed):
    check_kills(run, tmp_path / "broken", undisturbed, searcher="nsga2")


@pytest.mark.parametrize("searcher", ["random", "optuna", "opentuner", "predictor"])
def test_so_it_is_with_every_searcher(run, tmp_path, closed_form, searcher):
    whole = search(run, tmp_path / "whole", searcher=searcher)
    check_kills(run, tmp_path / "broken", whole, searcher=searcher)


def check_kills(run, folder, whole, *, searcher):
    """A search that is killed twice ends as `whole`, journal and all."""
    for calls in (1, 3):
        with dying(calls), pytest.raises(KeyboardInterrupt):
            search(run, folder, searcher=searcher)
    result = search(run, folder, searcher=searcher)
    assert numbers(result.front) == numbers(whole.front)
    journals = [
        sorted(numbers(read_journal(each / "journal.jsonl")), key=lambda row: row[0])
        for each in (whole.folder, folder)
    ]
    assert journals[0] == journals[1]


def test_chunks_and_their_order_do_not_change_what_is_found(run, tmp_path, undisturbed):
    other = search(run, tmp_path / "s", chunk=3)
    assert numbers(other.front) == numbers(undisturbed.front)


def test_a_longer_search_begins_as_the_shorter_one(run, tmp_path, closed_form):
    search(run, tmp_path / "grown", trials=6)
    grown = search(run, tmp_path / "grown", trials=12)
    whole = search(run, tmp_path / "whole", trials=12)
    assert numbers(grown.front) == numbers(whole.front)


def test_a_finished_search_that_goes_on_is_not_finished(run, tmp_path, closed_form):
    first = search(run, tmp_path / "s", trials=4)
    before = read_record(first.folder)
    assert before["finished"]
    longer = tiny_search(run, first.folder, trials=8)
    prepare_folder(longer, find_inputs(longer))  # and then it is killed
    after = read_record(first.folder)
    assert (after["finished"], after["config"]["trials"]) == (False, 8)
    assert after["front"] == before["front"]
    search(run, first.folder, trials=8)
    assert read_record(first.folder)["finished"]


def test_a_finished_search_evaluates_nothing_again(run, undisturbed):
    with dying(1):
        again = search(run, undisturbed.folder)
    assert numbers(again.front) == numbers(undisturbed.front)


def test_fewer_trials_than_are_done_change_nothing(run, tmp_path, closed_form, capsys):
    whole = search(run, tmp_path / "s", trials=8)
    kept = read_record(whole.folder), (whole.folder / "pareto.json").read_bytes()
    with dying(1):
        again = search(run, whole.folder, trials=4)
    assert "8 trials are done, and 4 were asked for: nothing more" in capsys.readouterr().err
    assert again.num_trials == 8
    record = read_record(whole.folder)
    assert (record | {"seconds": 0}, (whole.folder / "pareto.json").read_bytes()) == (
        kept[0] | {"seconds": 0},
        kept[1],
    )


def test_early_stopping_gives_up_on_some_and_survives_a_kill(run, tmp_path, closed_form):
    settings = {"trials": 32, "population": 8, "protocol": {"rungs": [0.3], "keep": 0.2}}
    whole = search(run, tmp_path / "whole", **settings)
    with dying(8), pytest.raises(KeyboardInterrupt):
        search(run, tmp_path / "broken", **settings)
    broken = search(run, tmp_path / "broken", **settings)
    assert numbers(broken.front) == numbers(whole.front)
    status = [t.status for t in read_journal(tmp_path / "whole" / "journal.jsonl")]
    assert status.count("stopped") > 0


def test_a_constraint_keeps_others_from_being_evaluated(run, tmp_path, closed_form):
    result = search(run, tmp_path / "s", constraint=["params_m<=4.74"])
    trials = read_journal(tmp_path / "s" / "journal.jsonl")
    assert all(t.metrics["params_m"] <= 4.74 for t in trials if t.stage == "search")
    assert all(t.metrics["params_m"] <= 4.74 for t in result.front)


def test_evaluation_data_that_training_saw_is_said_so(run, tmp_path, capsys, closed_form):
    train = str(run.data.train[0])
    result = search(run, tmp_path / "s", data=[train], trials=4, protocol={"images": 4})
    record = json.loads((result.folder / "search.json").read_text())
    assert record["data"]["seen_in_training"]["seen"] is True
    assert "training saw the evaluation data" in capsys.readouterr().err


def test_the_weights_before_training_are_a_reference(run, shards, tmp_path):
    tuned = make_run(tmp_path / "tuned", shards, model={"checkpoint": str(run.folder)})
    result = search(tuned, tmp_path / "s", trials=4)
    assert set(result.references) == {"largest", "smallest", "pretrained"}
    before, after = result.references["pretrained"], result.references["largest"]
    assert (before.step, after.step) == (0, 7)
    assert before.metrics["miou"] != after.metrics["miou"]
    assert before.key != after.key


def test_a_start_that_is_gone_leaves_what_was_measured_of_it(
    run, shards, tmp_path, capsys, closed_form
):
    start = shutil.copytree(run.folder, tmp_path / "start")
    tuned = make_run(tmp_path / "tuned", shards, model={"checkpoint": str(start)})
    search(tuned, tmp_path / "s", trials=4)
    shutil.rmtree(start)
    again = search(tuned, tmp_path / "s", trials=4)
    assert set(again.references) == {"largest", "smallest", "pretrained"}
    assert set(search(tuned, tmp_path / "new", trials=4).references) == {"largest", "smallest"}
    assert "start is gone: nothing pretrained to compare with" in capsys.readouterr().err


def test_the_settings_are_read_back_equal(run, tmp_path, undisturbed):
    saved = load_run(SearchRun, undisturbed.folder / "search.yaml")
    assert saved == tiny_search(run, undisturbed.folder, protocol={"prompt": "both"})


def test_a_space_smaller_than_the_budget_is_exhausted(shards, tmp_path, capsys, closed_form):
    small = make_run(
        tmp_path / "run", shards, space={"mlp_fractions": [0.5, 1.0], "removable": [1],
        "elastic_heads": False, "elastic_mlp": False},
    )  # fmt: skip
    for searcher in ("random", "exhaustive", "nsga2"):
        result = search(small, tmp_path / searcher, searcher=searcher, trials=100)
        assert result.finished
        assert result.num_trials == 2
        assert "no subnet is left to propose after 2 of 100 trials" in capsys.readouterr().err


def test_a_batch_that_comes_out_short_does_not_end_the_search(
    run, tmp_path, monkeypatch, closed_form
):
    ask = RandomSearcher.ask
    monkeypatch.setattr(RandomSearcher, "ask", lambda self, count: ask(self, count - 1))
    result = search(run, tmp_path / "s", searcher="random", trials=7)
    assert result.num_trials == 7


def test_what_an_earlier_version_proposed_is_kept_and_the_search_goes_on(
    run, tmp_path, monkeypatch, closed_form
):
    first = search(run, tmp_path / "s", searcher="regularized", trials=12)
    record = read_record(first.folder) | {"format": 1}
    (first.folder / "search.json").write_text(json.dumps(record))
    propose = RegularizedSearcher._propose
    with monkeypatch.context() as patch:
        patch.setattr(  # as if another version had written the journal
            RegularizedSearcher, "_propose", lambda self, rng: propose(self, np.random.default_rng(
                [9, *rng.integers(2**31, size=2)]))
        )  # fmt: skip
        with dying(1):  # nothing is evaluated again
            again = search(run, first.folder, searcher="regularized", trials=12)
    assert numbers(again.front) == numbers(first.front)
    longer = search(run, first.folder, searcher="regularized", trials=16)
    assert (longer.finished, longer.num_trials) == (True, 16)
    assert read_record(first.folder)["format"] == 1


@pytest.mark.parametrize("searcher", ["nsga2", "predictor", "optuna", "opentuner", "exhaustive"])
def test_a_restart_asks_for_nothing_that_the_journal_holds_whole(
    run, tmp_path, monkeypatch, closed_form, searcher
):
    whole = search(run, tmp_path / "whole", searcher=searcher, trials=24)
    first = search(run, tmp_path / "s", searcher=searcher, trials=20)
    held = [t for t in read_journal(first.folder / "journal.jsonl") if t.batch >= 0]
    complete = [b for b in range(5) if sum(t.batch == b for t in held) == 4]
    asked = []
    kind = ExhaustiveSearcher if searcher == "exhaustive" else Searcher
    ask = kind.ask
    monkeypatch.setattr(kind, "ask", lambda self, n: asked.append(n) or ask(self, n))
    longer = search(run, first.folder, searcher=searcher, trials=24)
    assert len(complete) >= 3
    # of OpenTuner all of the era, 1,024 trials at most
    assert len(asked) == (6 if searcher == "opentuner" else 6 - len(complete))
    assert numbers(longer.front) == numbers(whole.front)


def test_an_edit_of_the_settings_by_hand_is_said_once_and_another_search_refused(
    run, tmp_path, closed_form, capsys
):
    first = search(run, tmp_path / "s", trials=4)
    file = first.folder / "search.yaml"
    assert "was edited" not in capsys.readouterr().err
    file.write_text(file.read_text().replace("trials: 4", "trials: 8"))
    again = search(run, first.folder, trials=8)
    said = f"note: {file} was edited since the last start, which counts from now on: trials: 4 -> 8"
    assert said in capsys.readouterr().err
    assert again.num_trials == 8
    file.write_text(file.read_text().replace("trials: 8", "trials: 12"))
    search(run, first.folder, trials=8)
    said = "which does not count, as the command says otherwise: trials: 8 -> 12\n"
    assert said in capsys.readouterr().err
    assert load_run(SearchRun, file).trials == 8
    file.write_text(file.read_text().replace("images: 6", "images: 5"))
    with pytest.raises(
        UserError, match="holds another search. It differs in\n  protocol.images: 6 -> 5"
    ):
        prepare_folder(load_run(SearchRun, file), find_inputs(load_run(SearchRun, file)))
    search(run, first.folder, trials=8)  # the command that began it still goes on
    assert "does not count" in capsys.readouterr().err
    search(run, first.folder, trials=8)
    assert "was edited" not in capsys.readouterr().err


def test_a_full_disk_loses_no_trial_that_was_kept(run, tmp_path, closed_form):
    whole = search(run, tmp_path / "whole")
    size = (whole.folder / "journal.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            search(run, tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = {trial.key for trial in read_journal(tmp_path / "s" / "journal.jsonl")}
    assert 2 < len(kept) < len(read_journal(whole.folder / "journal.jsonl"))
    again = search(run, tmp_path / "s")
    assert numbers(again.front) == numbers(whole.front)
    assert kept < {trial.key for trial in read_journal(again.folder / "journal.jsonl")}
