"""How much memory there is to take."""

from __future__ import annotations

import pytest

from supersam.runtime.memory import _below_limits, free_bytes
from supersam.runtime.process import available_gib

MIB = 2**20


def cgroup(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path


def test_a_job_has_what_the_tightest_of_its_cgroups_leaves(root):
    (root / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    place = root / "sys/fs/cgroup"
    stat = f"anon 5\ninactive_file {10 * MIB}\n"
    cgroup(place / "slurm/job_7/step_0", memory__max="max\n", memory__current="5\n",
           memory__stat=stat)  # fmt: skip
    cgroup(place / "slurm/job_7", memory__max=f"{100 * MIB}\n", memory__current=f"{40 * MIB}\n",
           memory__stat=stat)  # fmt: skip
    cgroup(place / "slurm", memory__max=f"{900 * MIB}\n", memory__current=f"{40 * MIB}\n",
           memory__stat=stat)  # fmt: skip
    assert sorted(_below_limits(root)) == [70 * MIB, 870 * MIB]


def test_the_first_version_of_cgroups_is_read_too(root):
    (root / "proc/self/cgroup").write_text("9:name=systemd:/\n4:memory:/job\n0::/\n")
    cgroup(root / "sys/fs/cgroup/memory/job", memory__limit_in_bytes=f"{8 * MIB}\n",
           memory__usage_in_bytes=f"{9 * MIB}\n", memory__stat="total_inactive_file 0")  # fmt: skip
    assert list(_below_limits(root)) == [0.0]


def test_this_process_can_take_no_more_than_its_host_has():
    assert 0 < free_bytes() <= available_gib() * 2**30 * 1.2  # it changes between the two
