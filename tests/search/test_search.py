from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from supersam.cluster.search import job as search_job
from supersam.config import UserError, load_run
from supersam.config.search import SearchRun
from supersam.runtime.signals import stop_requested
from supersam.search import Trial, pareto_front, read_journal
from supersam.search import evaluator as objective
from supersam.search.command import run_search, run_search_here
from supersam.search.evaluator import SubnetEvaluator
from supersam.search.folder import prepare_folder, read_record
from supersam.search.inputs import find_inputs
from supersam.search.searchers import baselines as plain
from supersam.search.searchers.baselines import RandomSearcher
from supersam.search.searchers.evolution import RegularizedSearcher
from supersam.search.sweep import expand
from tests.search.tiny_search import make_run, make_shards, search, tiny_search


def numbers(trials):
    """Everything of trials but when and where."""
    return [
        (t.key, t.spec, t.stage, t.status, dict(t.metrics), t.num_images, t.batch, t.index)
        for t in trials
    ]


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    return search(run, tmp_path_factory.mktemp("undisturbed") / "s")


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


@pytest.mark.parametrize("searcher", ["random", "nsga2", "optuna", "opentuner", "predictor"])
def test_a_killed_search_goes_on_and_finds_the_same(run, tmp_path, monkeypatch, searcher):
    whole = search(run, tmp_path / "whole", searcher=searcher)
    for attempt in (1, 3):
        _die_at(monkeypatch, calls=attempt)
        with pytest.raises(KeyboardInterrupt):
            search(run, tmp_path / "broken", searcher=searcher)
        monkeypatch.undo()
    result = search(run, tmp_path / "broken", searcher=searcher)
    assert numbers(result.front) == numbers(whole.front)
    journals = [
        sorted(numbers(read_journal(tmp_path / name / "journal.jsonl")), key=lambda row: row[0])
        for name in ("whole", "broken")
    ]
    assert journals[0] == journals[1]


def _die_at(monkeypatch, *, calls):
    """The process dies in the middle of its `calls`-th chunk."""
    evaluate, left = SubnetEvaluator.evaluate, [calls]

    def dying(self, chunk):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return evaluate(self, chunk)

    monkeypatch.setattr(SubnetEvaluator, "evaluate", dying)


def test_chunks_and_their_order_do_not_change_what_is_found(run, tmp_path, undisturbed):
    other = search(run, tmp_path / "s", chunk=3)
    assert numbers(other.front) == numbers(undisturbed.front)


def test_a_longer_search_begins_as_the_shorter_one(run, tmp_path):
    search(run, tmp_path / "grown", trials=6)
    grown = search(run, tmp_path / "grown", trials=12)
    whole = search(run, tmp_path / "whole", trials=12)
    assert numbers(grown.front) == numbers(whole.front)


def test_a_finished_search_that_goes_on_is_not_finished(run, tmp_path):
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


def test_a_finished_search_evaluates_nothing_again(run, undisturbed, monkeypatch):
    _die_at(monkeypatch, calls=1)
    again = search(run, undisturbed.folder)
    assert numbers(again.front) == numbers(undisturbed.front)


def test_fewer_trials_than_are_done_change_nothing(run, tmp_path, monkeypatch, capsys):
    whole = search(run, tmp_path / "s", trials=8)
    kept = read_record(whole.folder), (whole.folder / "pareto.json").read_bytes()
    _die_at(monkeypatch, calls=1)
    again = search(run, whole.folder, trials=4)
    assert "8 trials are done, and 4 were asked for: nothing more" in capsys.readouterr().err
    assert again.num_trials == 8
    record = read_record(whole.folder)
    assert (record | {"seconds": 0}, (whole.folder / "pareto.json").read_bytes()) == (
        kept[0] | {"seconds": 0},
        kept[1],
    )


def test_a_complete_search_is_not_submitted(run, undisturbed, monkeypatch, capsys):
    monkeypatch.setattr("supersam.cluster.slurm.commands.missing_slurm", lambda: None)
    monkeypatch.setattr("supersam.cluster.slurm.commands.run_command", lambda *_, **__: "")
    trials = undisturbed.num_trials
    asked = tiny_search(run, undisturbed.folder, trials=trials, cluster={"cluster": "slurm"})
    assert search_job.submit_search(asked) == 0
    assert "is complete; a larger --trials goes on" in capsys.readouterr().out


def test_early_stopping_gives_up_on_some_and_survives_a_kill(run, tmp_path, monkeypatch):
    settings = {"trials": 32, "population": 8, "protocol": {"rungs": [0.3], "keep": 0.2}}
    whole = search(run, tmp_path / "whole", **settings)
    _die_at(monkeypatch, calls=8)
    with pytest.raises(KeyboardInterrupt):
        search(run, tmp_path / "broken", **settings)
    monkeypatch.undo()
    broken = search(run, tmp_path / "broken", **settings)
    assert numbers(broken.front) == numbers(whole.front)
    status = [t.status for t in read_journal(tmp_path / "whole" / "journal.jsonl")]
    assert status.count("stopped") > 0


def test_a_constraint_keeps_others_from_being_evaluated(run, tmp_path):
    result = search(run, tmp_path / "s", constraint=["params_m<=4.74"])
    trials = read_journal(tmp_path / "s" / "journal.jsonl")
    assert all(t.metrics["params_m"] <= 4.74 for t in trials if t.stage == "search")
    assert all(t.metrics["params_m"] <= 4.74 for t in result.front)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"constraint": ["params_m<=1"]}, "the smallest subnet has params_m=4.69"),
        ({"constraint": ["params_m<=4.7", "flops_g>=0.078"]}, "the nearest has params_m="),
        ({"checkpoint": "99"}, "has no checkpoint '99'; it has step-000007"),
        ({"checkpoint": "initial"}, "use last, best or a step number"),
        ({"data": ["/nowhere"]}, "/nowhere"),
        ({"run": "/nowhere"}, "/nowhere is no run"),
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


@pytest.mark.parametrize("sweep", [{}, {"seeds": [0, 1]}])
def test_a_dry_run_shows_what_slurm_would_be_asked_and_writes_nothing(run, tmp_path, capsys, sweep):
    place = {"cluster": "slurm", "nodes": 2, "spare_nodes": 1}  # of a site's profile
    asked = tiny_search(run, tmp_path / "s", sweep=sweep, dry_run=True, cluster=place)
    assert search_job.submit_search(asked) == 0
    said = capsys.readouterr().out
    for each in expand(asked):
        assert f"folder: {each.folder}\n" in said
    assert ("as an array of 2, would be" in said) == bool(sweep)
    assert "#SBATCH --nodes=2\n" in said
    assert not (tmp_path / "s").exists()


def test_a_search_asks_for_all_its_nodes_though_fewer_may_join(run, tmp_path):
    place = {"nodes": 4, "min_nodes": 2}
    parameters = search_job.search_parameters(tiny_search(run, tmp_path, cluster=place))
    assert parameters["nodes"] == 4
    assert not {"nodes", "no-kill"} & set(parameters["additional_parameters"])


def test_a_dry_run_refuses_what_the_search_would(run, undisturbed):
    asked = tiny_search(run, undisturbed.folder, seed=9, dry_run=True)
    with pytest.raises(UserError, match="holds another search. It differs in\n  seed: 0 -> 9"):
        search_job.submit_search(asked)


def test_a_sweep_is_checked_whole_before_its_first_search(run, tmp_path):
    sweep = {"constraints": ["params_m<=5", "params_m<=1"]}
    with pytest.raises(UserError, match="params_m <= 1 is impossible"):
        run_search_here(tiny_search(run, tmp_path / "s", sweep=sweep))
    assert not (tmp_path / "s").exists()


def test_a_sweep_goes_on_after_a_search_that_cannot(run, tmp_path, capsys):
    sweep = {"constraints": ["peak_mem_mib<=0.5", "params_m<=5"]}
    asked = tiny_search(run, tmp_path / "s", sweep=sweep, trials=4, json=True)
    assert run_search_here(asked) == 1
    said = capsys.readouterr()
    failed, done = expand(asked)
    assert "is impossible on" in said.err
    assert f"not searched to the end: {failed.name}; see above" in said.err
    found = json.loads(said.out)
    assert found["failed"] == [failed.name]
    assert [(row["name"], row["finished"]) for row in found["searches"]] == [
        (failed.name, False),
        (done.name, True),
    ]
    assert (done.folder / "report.html").is_file()


def test_a_sweep_that_is_stopped_says_by_what(run, tmp_path, monkeypatch, capsys):
    evaluate = SubnetEvaluator.evaluate

    def interrupted(self, chunk):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self, chunk)

    monkeypatch.setattr(SubnetEvaluator, "evaluate", interrupted)
    asked = tiny_search(run, tmp_path / "s", sweep={"seeds": [0, 1]})
    assert run_search_here(asked) == 128 + signal.SIGTERM
    assert "run the same command to go on" in capsys.readouterr().err
    assert not expand(asked)[1].folder.exists()


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


def test_evaluation_data_that_training_saw_is_said_so(run, tmp_path, capsys):
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


def test_a_start_that_is_gone_leaves_what_was_measured_of_it(run, shards, tmp_path, capsys):
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
    assert saved == tiny_search(run, undisturbed.folder)


def test_a_space_smaller_than_the_budget_is_exhausted(shards, tmp_path, capsys):
    small = make_run(
        tmp_path / "run", shards, space={"mlp_fractions": [0.5, 1.0], "removable": [1],
        "elastic_heads": False, "elastic_mlp": False},
    )  # fmt: skip
    for searcher in ("random", "exhaustive", "nsga2"):
        result = search(small, tmp_path / searcher, searcher=searcher, trials=100)
        assert result.finished
        assert result.num_trials == 2
        assert "no subnet is left to propose after 2 of 100 trials" in capsys.readouterr().err


def test_a_batch_that_comes_out_short_does_not_end_the_search(run, tmp_path, monkeypatch):
    ask = RandomSearcher.ask
    monkeypatch.setattr(RandomSearcher, "ask", lambda self, count: ask(self, count - 1))
    result = search(run, tmp_path / "s", searcher="random", trials=7)
    assert result.num_trials == 7


def test_a_signal_before_the_search_begins_is_not_lost(run, tmp_path):
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGUSR2)
        result = run_search(tiny_search(run, tmp_path / "s"), stop=stop)
    assert not result.finished
    assert result.stopped_by == signal.SIGUSR2
    assert read_journal(tmp_path / "s" / "journal.jsonl") == []
    assert search(run, tmp_path / "s").finished


def test_a_job_gives_its_signals_to_its_search(run, tmp_path, monkeypatch):
    asked = tiny_search(run, tmp_path / "s")
    prepare_folder(asked, find_inputs(asked))

    @contextlib.contextmanager
    def hosts(folder, home):
        signal.raise_signal(signal.SIGTERM)  # while they start
        yield tmp_path / "meeting.json"

    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_job, "ray_on_all_hosts", hosts)
    monkeypatch.setattr(search_job, "read_head_address", lambda meeting: None)
    with pytest.raises(SystemExit) as ended:
        search_job.SearchSupervisor(str(asked.folder), str(tmp_path))()
    assert ended.value.code == 128 + signal.SIGTERM


def test_what_an_earlier_version_proposed_is_kept_and_the_search_goes_on(
    run, tmp_path, monkeypatch
):
    first = search(run, tmp_path / "s", searcher="regularized", trials=12)
    record = read_record(first.folder) | {"format": 1}
    (first.folder / "search.json").write_text(json.dumps(record))
    propose = RegularizedSearcher._propose
    monkeypatch.setattr(  # as if another version had written the journal
        RegularizedSearcher, "_propose", lambda self, rng: propose(self, np.random.default_rng(
            [9, *rng.integers(2**31, size=2)]))
    )  # fmt: skip
    monkeypatch.setattr(SubnetEvaluator, "evaluate", None)  # nothing is evaluated again
    again = search(run, first.folder, searcher="regularized", trials=12)
    assert numbers(again.front) == numbers(first.front)
    monkeypatch.undo()
    longer = search(run, first.folder, searcher="regularized", trials=16)
    assert (longer.finished, longer.num_trials) == (True, 16)
    assert read_record(first.folder)["format"] == 1
