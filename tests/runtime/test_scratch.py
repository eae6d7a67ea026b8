"""Temporary folders of processes that may be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from supersam.runtime.scratch import scratch_folder, shorten_temporary_names

HOLD = """
from supersam.runtime.scratch import scratch_folder
with scratch_folder("ss-") as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_after_its_block(place):
    with scratch_folder("ss-") as folder:
        assert folder.parent == place
        assert folder.is_dir()
    assert list(place.iterdir()) == []


def test_the_next_start_removes_what_a_killed_process_left_and_nothing_else(place):
    (place / "ss-notes").mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = place / owner.stdout.readline().strip()
    with scratch_folder("ss-"):
        assert (left / "big").is_file()  # its owner lives
    owner.kill()
    owner.communicate()
    assert left.is_dir()
    with scratch_folder("ss-") as folder:
        assert sorted(place.iterdir()) == sorted([folder, place / "ss-notes"])


def test_a_temporary_folder_too_long_for_sockets_is_replaced(place, monkeypatch):
    deep = place / ("x" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setenv("TMPDIR", str(deep))
    shorten_temporary_names()
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == ("/tmp", "/tmp")


def test_a_short_temporary_folder_stays(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    shorten_temporary_names()
    assert tempfile.gettempdir() == "/var/tmp"
