"""Processes: which one it is, and one that only prints while nobody reads on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from supersam.runtime.process import (
    available_gib,
    describe_process,
    ends_with_reader,
    is_same_process,
    resident_gib,
    start_ticks,
)
from tests.paths import ROOT

PRINT_MUCH = """
from supersam.runtime.process import ends_with_reader
with ends_with_reader():
    for number in range(10**6):
        print(number)
"""


def test_a_command_that_nobody_reads_on_ends_without_a_word():
    with subprocess.Popen(
        [sys.executable, "-c", PRINT_MUCH], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_a_broken_pipe_is_an_error_again_afterwards():
    before = signal.getsignal(signal.SIGPIPE)
    with ends_with_reader():
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGPIPE) == before == signal.SIG_IGN


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_the_start_is_the_one_that_the_kernel_counts(sleeper):
    stat = Path(f"/proc/{sleeper.pid}/stat").read_text()
    ticks = int(stat.rpartition(")")[2].split()[19])  # what run folders hold
    assert abs(start_ticks(sleeper.pid) - ticks) <= os.sysconf("SC_CLK_TCK")
    assert is_same_process(sleeper.pid, ticks)


def test_a_later_process_of_the_same_number_is_another_one(sleeper):
    ticks = start_ticks(sleeper.pid) - 3600 * os.sysconf("SC_CLK_TCK")
    assert not is_same_process(sleeper.pid, ticks)
    assert describe_process(sleeper.pid, ticks) == "is gone"


def test_a_process_is_described_by_its_state(sleeper):
    ticks = start_ticks(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
    assert describe_process(sleeper.pid, ticks) == "is stopped"
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert describe_process(sleeper.pid, ticks) == "has ended"  # its parent has not asked yet
    assert not is_same_process(sleeper.pid, ticks)
    sleeper.wait()
    assert start_ticks(sleeper.pid) is None
    assert describe_process(sleeper.pid, ticks) == "is gone"


def test_memory_is_in_gib():
    assert 0 < resident_gib() < available_gib() * 100
    assert available_gib() <= psutil.virtual_memory().total / 2**30


NAME_A_FOLDER = """
import os, subprocess, sys
from supersam.runtime.process import begin_in_utf8
begin_in_utf8()
os.mkdir(sys.argv[1])
child = "import sys; print(ascii(sys.argv[1]), sys.getfilesystemencoding())"
sys.exit(subprocess.run([sys.executable, "-c", child, sys.argv[1]]).returncode)
"""


@pytest.mark.parametrize("coercion", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_are_utf_8_whatever_the_locale(tmp_path, coercion):
    done = subprocess.run(
        [sys.executable, "-c", NAME_A_FOLDER, tmp_path / "läufe"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", **coercion},
        capture_output=True,
        text=True,
        check=True,
    )
    name, encoding = done.stdout.split()
    assert name.endswith(r"l\xe4ufe'")
    assert encoding == "utf-8"
    assert (tmp_path / "läufe").is_dir()
