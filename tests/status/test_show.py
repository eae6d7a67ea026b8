"""launch/status.py without Slurm: what it prints of the folders that it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supersam.config import StatusRun
from supersam.status.show import show


def make_run(folder: Path, text: str = "optim: {steps: 9}\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("damage", ["{optim: [", "", "- 3", "\0", "optim: 3"])
def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path, capsys, damage: str) -> None:
    make_run(tmp_path / "good")
    broken = make_run(tmp_path / "broken", damage)
    assert show(StatusRun(root=tmp_path)) == 0
    said = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1] for line in said.out.splitlines()[1:]}
    assert rows == {"good": "new", "broken": "unreadable"}
    (note,) = said.err.splitlines()
    assert str(broken / "run.yaml") in note
    assert show(StatusRun(root=tmp_path, json=True)) == 0
    states = {run["state"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert states == {"new", "unreadable"}
    assert show(StatusRun(run=broken)) == 2
    assert str(broken / "run.yaml") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ended_in", "job_id", "is_noted"),
    [("finished", "7", False), ("finished", "8", True), ("preempted", "7", True)],
)
def test_slurms_silence_is_noted_only_where_a_run_could_be_alive(
    slurm, tmp_path: Path, capsys, ended_in: str, job_id: str, is_noted: bool
) -> None:
    slurm("squeue", "echo no answer >&2; exit 1")
    folder = make_run(tmp_path / "run")
    start = {"event": "start", "attempt": 1, "time": 1.0, "step": 0, "job_id": "7"}
    start |= {"hosts": ["n1"], "world_size": 1, "restart_count": 0}
    end = start | {"event": "end", "time": 2.0, "reason": ended_in, "exit_code": 0}
    end |= {"step": 9 if ended_in == "finished" else 4}
    lines = "".join(json.dumps(event) + "\n" for event in (start, end))
    (folder / "attempts.jsonl").write_text(lines, encoding="utf-8")
    (folder / "progress.json").write_text(json.dumps({"step": end["step"]}), encoding="utf-8")
    job = {"job_id": job_id, "submitted": 0.5 if job_id == "7" else 3.0}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    assert show(StatusRun(root=tmp_path)) == 0
    assert ("Slurm does not answer" in capsys.readouterr().err) == is_noted


def test_a_folder_is_found_below_the_root_or_as_it_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"))
    Path("a").mkdir()
    for named in ("a", "runs/a"):
        assert StatusRun(run=Path(named)).folder == Path("runs/a")
    assert StatusRun(run=Path("b")).folder == Path("runs/b")
    assert StatusRun(run=Path("runs/b/results/s")).folder == Path("runs/b/results/s")


def test_a_mistyped_run_is_answered_with_the_nearest(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "nuclei")
    assert show(StatusRun(run=Path("nucle"), root=tmp_path)) == 2
    assert f"did you mean {tmp_path / 'nuclei'}?" in capsys.readouterr().err
