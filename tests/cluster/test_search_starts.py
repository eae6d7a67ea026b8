"""A search's job is started again as long as its starts find something."""

from __future__ import annotations

from pathlib import Path

from supersam.cluster.search.supervisor import SearchStarts


def test_starts_without_a_new_trial_are_counted_back_to_the_last_that_found_one(
    tmp_path: Path,
) -> None:
    starts, journal = SearchStarts(tmp_path, "7"), tmp_path / "journal.jsonl"
    assert starts.without_progress() == 0
    starts.record()
    starts.record()
    assert starts.without_progress() == 2
    journal.write_text('{"key": "a"}\n', encoding="utf-8")
    assert starts.without_progress() == 0
    starts.record()
    assert starts.without_progress() == 1
    assert SearchStarts(tmp_path, "8").without_progress() == 0  # the user's next command


def test_the_third_start_without_a_new_trial_is_not_requeued(slurm, tmp_path: Path, capsys) -> None:
    slurm("scontrol", f'echo "$@" >> {tmp_path}/asked')
    starts = SearchStarts(tmp_path, "7")
    for _ in range(3):
        starts.record()
    starts.requeue(code=138)
    assert not (tmp_path / "asked").exists()
    assert (
        "3 starts of job 7 ended at the time limit without a new trial" in capsys.readouterr().err
    )
