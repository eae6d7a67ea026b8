"""Experiments side by side: each starts when it may, and nothing outlives the deadline."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.jobs import START_FAILED, Job, run_jobs
from tests.patience import PATIENCE_S

WAIT = "import time; time.sleep(600)"
STOPPABLE = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); "


def python(code):
    return [sys.executable, "-S", "-c", code]


@pytest.fixture
def leap(monkeypatch):
    """Lets the clock of run_jobs leap 1,500 s ahead as soon as a file exists."""

    def leap_when(file):
        clock = SimpleNamespace(
            monotonic=lambda: time.monotonic() + 1500 * file.exists(), sleep=time.sleep
        )
        monkeypatch.setattr("experiments.jobs.time", clock)

    return leap_when


def run(jobs, tmp_path, *, seconds=2000.0, slots=2):
    """Run jobs; the names of those that ended, after each end."""
    seen = []
    run_jobs(
        jobs,
        time.monotonic() + seconds,
        slots=slots,
        folder=tmp_path,
        report=lambda ended: seen.append([job.name for job in ended]),
    )
    return seen


def test_a_job_waits_for_what_it_needs_and_asks_for_its_words_only_then(tmp_path):
    first = Job("first", python(f"open(r'{tmp_path}/made', 'w').write('x')"))

    def words():
        return python(f"print({(tmp_path / 'made').read_text()!r})")

    second = Job("second", words, after=["first"])
    assert run([second, first], tmp_path) == [["first"], ["first", "second"]]
    assert second.log.read_text() == "x\n"


def test_what_needs_a_failed_job_never_starts(tmp_path):
    bad, good = python("raise SystemExit(3)"), python("")
    jobs = [Job("bad", bad), Job("next", good, after=["bad"]), Job("last", good, after=["next"])]
    assert run(jobs, tmp_path) == [["bad"]]
    assert jobs[0].exit_code == 3
    assert jobs[1].process is jobs[2].process is None


def test_a_job_whose_words_cannot_be_found_ends_alone(tmp_path):
    def words():
        raise ZeroDivisionError

    jobs = [Job("bad", words), Job("next", python(""), after=["bad"]), Job("good", python(""))]
    assert run(jobs, tmp_path) == [["good"]]
    assert jobs[0].exit_code == START_FAILED


def test_a_report_that_fails_ends_nothing(tmp_path):
    def report(ended):
        raise OSError("disk full")

    jobs = [Job("a", python("")), Job("b", python(""), after=["a"])]
    run_jobs(jobs, time.monotonic() + 2000, slots=1, folder=tmp_path, report=report)
    assert [job.exit_code for job in jobs] == [0, 0]


def test_a_job_stopped_by_its_own_limit_is_used_by_others(tmp_path, leap):
    leap(ready := tmp_path / "ready")
    stoppable = python(f"{STOPPABLE} open({str(ready)!r}, 'w'); {WAIT}")
    long = Job("long", stoppable, until=time.monotonic() + 1000)
    after = Job("after", python(""), after=["long"])
    assert run([long, after], tmp_path) == [["long"], ["long", "after"]]
    assert (long.exit_code, after.exit_code) == (143, 0)


def test_the_earlier_in_the_list_gets_the_slot(tmp_path):
    jobs = [Job(name, python("")) for name in ("a", "b", "c")]
    assert run(jobs, tmp_path, slots=1)[-1] == ["a", "b", "c"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_at_the_deadline_a_job_ends_with_its_children(tmp_path, leap):
    leap(ready := tmp_path / "ready")
    file = tmp_path / "child"
    grandchild = f"import os; open({str(file)!r}, 'w').write(str(os.getpid())); "
    grandchild += f"open({str(ready)!r}, 'w'); {WAIT}"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {grandchild!r}])"
    job = Job("parent", python(child))
    assert run([job], tmp_path, seconds=1000.0) == [["parent"]]
    assert job.exit_code != 0
    stat = Path(f"/proc/{file.read_text()}/stat")
    patience = time.monotonic() + PATIENCE_S  # a busy machine takes a while to deliver SIGKILL
    while (state := process_state(stat)) not in ("gone", "Z", "X") and time.monotonic() < patience:
        time.sleep(0.1)
    assert state in ("gone", "Z", "X")


def process_state(stat):
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
