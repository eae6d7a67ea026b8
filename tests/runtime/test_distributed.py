"""How a process joins its world, whatever the environment holds."""

import os
import subprocess
import sys

import pytest

JOIN = """
import torch
from supersam.config import UserError
from supersam.runtime.distributed import all_reduce_max, close_world, init_world
try:
    init_world(torch.device("cpu"))
except UserError as fault:
    print(fault)
    raise SystemExit(2)
assert all_reduce_max(3.0) == 3.0
close_world()
"""


def join(**environment):
    """Join in a process of its own; returns its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_process_alone_needs_no_network_interface():
    code, _, errors = join(GLOO_SOCKET_IFNAME="absent0")
    assert code == 0, errors


def test_an_absent_interface_is_named_with_those_that_are_here():
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "9"}
    code, said, errors = join(GLOO_SOCKET_IFNAME="absent0", **place)
    assert code == 2, errors
    assert said.startswith("GLOO_SOCKET_IFNAME=absent0 names absent0, and the network interfaces")
    assert " lo" in said


@pytest.mark.parametrize("command", ["search", "train"])
def test_help_that_nobody_reads_on_ends_without_a_word(command):
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "supersam", command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
