"""A search's job is started again as long as its starts find something."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from supersam.cluster.search.ray_host import write_head_address
from supersam.cluster.search.supervisor import SearchStarts, ray_on_all_hosts
from supersam.config import UserError
from supersam.search.ray.address import RayAddress


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


@pytest.fixture
def job(slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 7 on two hosts; a step does nothing."""
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_CPUS_PER_TASK", "1")):
        monkeypatch.setenv(name, value)
    slurm("squeue", "echo n[1-2]")
    slurm("scontrol", "echo n1 n2")
    slurm("sinfo", "echo n1 allocated; echo n2 allocated")
    slurm("srun", ":")


def test_hosts_that_do_not_share_the_folder_of_a_search_are_named(job, slurm, tmp_path: Path):
    slurm("srun", "echo n2")  # what a host says that does not see what the first one wrote
    with (
        pytest.raises(
            UserError, match=f"n2 cannot read what .* writes to {tmp_path}; choose a fol"
        ),
        ray_on_all_hosts(tmp_path, tmp_path),
    ):
        pytest.fail("no Ray may start")
    assert not (tmp_path / "ray").exists()


def test_tokens_of_killed_jobs_go_with_the_next_start_and_its_own_with_its_end(job, tmp_path: Path):
    left = tmp_path / "ray" / "6-0.json"
    write_head_address(left, RayAddress("127.0.0.1:1", "ss-1", "secret"))
    with contextlib.suppress(KeyboardInterrupt), ray_on_all_hosts(tmp_path, tmp_path) as file:
        assert not left.exists()
        write_head_address(file, RayAddress("127.0.0.1:2", "ss-2", "secret"))
        assert list((tmp_path / "ray").iterdir()) == [file]
        raise KeyboardInterrupt
    assert list((tmp_path / "ray").iterdir()) == []
