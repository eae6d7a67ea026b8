"""A search as a command: dry runs, sweeps, signals, and what Slurm is asked for."""

from __future__ import annotations

import contextlib
import json
import signal

import pytest

from supersam.cluster.search import job as search_job
from supersam.cluster.search import supervisor as search_supervisor
from supersam.config import UserError
from supersam.config.files import SWEEP_JSON
from supersam.runtime.signals import stop_requested
from supersam.search import read_journal, session
from supersam.search.command import format_front, run_search_here
from supersam.search.evaluator import SubnetEvaluator
from supersam.search.folder import prepare_folder
from supersam.search.front import SearchResult
from supersam.search.inputs import find_inputs
from supersam.search.session import run_search
from supersam.search.sweep import expand
from tests.search.tiny_search import search, tiny_search
from tests.search.trials import make_trial


def test_a_complete_search_is_not_submitted(run, undisturbed, monkeypatch, capsys):
    monkeypatch.setattr("supersam.cluster.slurm.commands.missing_slurm", lambda: None)
    monkeypatch.setattr("supersam.cluster.slurm.commands.run_command", lambda *_, **__: "")
    trials = undisturbed.num_trials
    asked = tiny_search(run, undisturbed.folder, trials=trials, cluster={"cluster": "slurm"})
    assert search_job.submit_search(asked) == 0
    assert "is complete; a larger --trials goes on" in capsys.readouterr().out


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
    for start in (run_search_here, search_job.submit_search):
        with pytest.raises(UserError, match="holds another search. It differs in\n  seed: 0 -> 9"):
            start(asked)


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
    assert (asked.folder / SWEEP_JSON).is_file()
    assert not (done.folder / SWEEP_JSON).exists()


def test_a_sweep_that_is_stopped_says_by_what(run, tmp_path, monkeypatch, capsys, closed_form):
    evaluate = SubnetEvaluator.evaluate

    def interrupted(self, chunk):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self, chunk)

    monkeypatch.setattr(SubnetEvaluator, "evaluate", interrupted)
    asked = tiny_search(run, tmp_path / "s", sweep={"seeds": [0, 1]})
    assert run_search_here(asked) == 128 + signal.SIGTERM
    assert "run the same command to go on" in capsys.readouterr().err
    assert not expand(asked)[1].folder.exists()


def test_a_job_gives_its_signals_to_its_search(run, tmp_path, monkeypatch):
    asked = tiny_search(run, tmp_path / "s")
    prepare_folder(asked, find_inputs(asked))

    @contextlib.contextmanager
    def hosts(folder, home):
        signal.raise_signal(signal.SIGTERM)  # while they start
        yield tmp_path / "address.json"

    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_supervisor, "ray_on_all_hosts", hosts)
    monkeypatch.setattr(search_supervisor, "read_head_address", lambda address_file: None)
    with pytest.raises(SystemExit) as ended:
        search_supervisor.SearchSupervisor(str(asked.folder), str(tmp_path))()
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_search_that_is_stopped_while_its_ray_starts_loads_nothing(run, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def starting(search):
        signal.raise_signal(signal.SIGINT)
        yield  # no Ray: an evaluator could not be asked for

    monkeypatch.setattr(session, "local_ray", starting)
    asked = tiny_search(run, tmp_path / "s", cluster={"cluster": "local"})
    result = run_search(asked)
    assert (result.finished, result.stopped_by) == (False, signal.SIGINT)
    assert read_journal(tmp_path / "s" / "journal.jsonl") == []


def test_a_signal_before_the_search_begins_is_not_lost(run, tmp_path, closed_form):
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGUSR2)
        result = run_search(tiny_search(run, tmp_path / "s"), stop=stop)
    assert not result.finished
    assert result.stopped_by == signal.SIGUSR2
    assert read_journal(tmp_path / "s" / "journal.jsonl") == []
    assert search(run, tmp_path / "s").finished


def test_the_table_names_lines_as_a_subnet_is_asked_for_and_has_units(tmp_path):
    sizes = ((0.40, 2.0, 1.0), (0.52, 3.0, 1.5), (0.55, 8.0, 4.0))
    front = tuple(
        make_trial(number, miou=miou, params_m=params, flops_g=flops, miou_lo=0.1, miou_hi=0.9)
        for number, (miou, params, flops) in enumerate(sizes)
    )
    result = SearchResult(
        tmp_path, front, references={"largest": front[2]}, num_trials=1, finished=True
    )
    lines = format_front(result, ("miou", "params_m", "latency_ms")).splitlines()
    assert " ".join(lines[0].split()) == "subnet mIoU M parameters ms GFLOPs 95 % interval"
    assert [line[:11].rstrip() for line in lines[1:5]] == [
        "largest", "#0 cheapest", "#1 knee", "#2 best",
    ]  # fmt: skip
    assert "0.5200" in lines[3]
    assert "3.00" in lines[3]
    assert lines[-1] == f"1 trial, {tmp_path}"
    assert max(map(len, lines[:-1])) <= 100
