"""A process that only prints, and nobody reads on."""

import signal
import subprocess
import sys

from supersam.runtime.process import ends_with_reader

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
