"""Where searches stand: beside the runs, and one alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob
from supersam.config import StatusRun
from supersam.search.front import write_front
from supersam.search.journal import Journal
from supersam.status.search import SearchRecord, find_searches, read_searches
from supersam.status.show import show
from tests.search.trials import make_trial


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """Two of four trials, one reference and a torn line; the front has one of them."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.yaml").write_text("optim: {steps: 5}\n", encoding="utf-8")
    folder = tmp_path / "a" / "results" / "s"
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    trials = [make_trial(0), make_trial(1, miou=0.75), make_trial(2, stage="reference")]
    journal.append(trials)
    journal.close()
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"sha256": "12", "tri')
    write_front(folder, trials[1:2])
    write_search(folder, finished=False)
    return folder


def write_search(folder: Path, **results: object) -> None:
    values = {"config": {"trials": 4}, **results}
    (folder / "search.json").write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path, job_state: str | None = None) -> SearchRecord:
    queue = JobQueue()
    if job_state is not None:
        (folder / "job.json").write_text('{"job_id": "7", "submitted": 1}', encoding="utf-8")
        queue.jobs = lambda ids: {i: SlurmJob(i, job_state, "", "n1", "") for i in ids}
    return read_searches([folder], queue)[0]


def test_a_search_that_was_left_says_how_far_it_is(search: Path):
    found = read(search)
    assert (found.trials, found.asked, found.front, found.best_miou) == (2, 4, 1, 0.75)
    assert found.words == (
        "unfinished, 2 of 4 trials, 1 on the front, the best at mIoU 0.7500; the same command goes "
        "on"
    )
    write_search(search, finished=True, num_trials=4)  # two of them were references already
    assert read(search).words.startswith("finished, 4 of 4")


def test_a_search_that_writes_is_running(search: Path):
    journal = Journal(search / "journal.jsonl")
    assert read(search).state == "running"
    journal.close()
    assert read(search).state == "unfinished"


@pytest.mark.parametrize(
    ("of_job", "state"),
    [
        ("PENDING", "pending"),
        ("RUNNING", "running"),
        ("OUT_OF_MEMORY", "failed"),
        ("COMPLETED", "unfinished"),
    ],
)
def test_a_search_on_slurm_is_as_its_job(search: Path, of_job: str, state: str):
    found = read(search, of_job)
    assert found.state == state
    assert (f"job 7 ended as {of_job}" in found.words) is (state == "failed")
    assert ("in the queue as job 7: pending, reason" in found.words) is (state == "pending")


@pytest.mark.parametrize("home", [".", "../.."])  # its own job, and that of `--then`
def test_the_log_is_that_of_the_job_else_of_this_machine(search: Path, home: str):
    (search / "logs").mkdir()
    own = search / "logs" / "search.log"
    own.touch()
    assert read(search).log == own
    log = (search / home).resolve() / "slurm" / "7_0_log.out"
    log.parent.mkdir()
    log.touch()
    assert read(search, "RUNNING").log.resolve() == log
    journal = Journal(search / "journal.jsonl")
    assert read(search, "TIMEOUT").log == own  # it goes on here
    journal.close()


def test_what_ended_a_search_is_said_where_its_log_ends_with_it(search: Path):
    (search / "logs").mkdir()
    log = search / "logs" / "search.log"
    log.write_text("I 2 of 4 trials, 1 on the front\n", encoding="utf-8")
    assert "log" not in read(search).words
    log.write_text("Traceback\nConnectionError: no Ray at 10.0.0.1\n\n", encoding="utf-8")
    assert "; its log ends with ConnectionError: no Ray at 10.0.0.1; the same" in read(search).words


def test_a_sweeps_folder_shows_its_searches(search: Path, capsys):
    assert show(StatusRun(run=search.parent)) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("s       unfinished  2       4")
    assert show(StatusRun(run=search.parent, json=True)) == 0
    (one,) = json.loads(capsys.readouterr().out)["searches"]
    assert one["search"] == str(search)
    for question in ("cancel", "follow"):
        assert show(StatusRun(run=search.parent, **{question: True})) == 2
        assert f"--{question} takes one: name its folder" in capsys.readouterr().err


def test_all_searches_are_listed_below_the_runs(search: Path, capsys):
    sweep = search.parent / "sweep" / "random-0"
    shutil.copytree(search, sweep)
    (search.parent / "bad").mkdir()
    (search.parent / "bad" / "search.json").write_text("{", encoding="utf-8")
    root = search.parents[2]
    assert len(find_searches(root)) == 3
    assert show(StatusRun(root=root)) == 0
    shown = capsys.readouterr()
    below = shown.out.partition("SEARCH")[2]
    assert "a/results/sweep/random-0  unfinished  2       4   1      0.7500     -    " in below
    assert "a/results/bad             unreadable" in below
    assert "bad cannot be read as a search" in shown.err
    assert show(StatusRun(root=root, json=True)) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["state"] for each in listed["searches"]} == {"unfinished", "unreadable"}


def test_one_search_alone(search: Path, capsys):
    (search / "report.html").touch()
    assert show(StatusRun(run=search)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{search}: {read(search).words}", f"report  {search / 'report.html'}"]
    for question, answer in (("cancel", "is not running (unfinished)"), ("follow", "tail -f")):
        assert show(StatusRun(run=search, **{question: True})) == 2
        assert answer in capsys.readouterr().err
    journal = Journal(search / "journal.jsonl")
    assert show(StatusRun(run=search, cancel=True)) == 2
    assert "end its command with Ctrl-C" in capsys.readouterr().err
    journal.close()
    assert show(StatusRun(run=search, json=True)) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 2
