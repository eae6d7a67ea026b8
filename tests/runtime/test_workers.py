"""Workers of a process that was killed do not outlive it."""

import os
import signal
import subprocess
import sys
import time

PARENT = """
import multiprocessing, time
from supersam.runtime.process import begin_worker

def work(pids):
    begin_worker()
    pids.put(multiprocessing.current_process().pid)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    pids = context.Queue()
    context.Process(target=work, args=(pids,)).start()
    print(pids.get(), flush=True)
    time.sleep(600)
"""


def test_a_worker_of_a_killed_parent_ends_by_itself(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert is_gone(worker, within_s=20)


def test_ctrl_c_reaches_the_parent_alone(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    os.kill(worker, signal.SIGINT)
    assert not is_gone(worker, within_s=1)
    parent.kill()
    parent.wait()


SLOW_START = """
import multiprocessing, os, signal, sys, time
from supersam.runtime.process import interrupts_blocked

def work(connection):
    connection.send(os.getpid())
    connection.recv()

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    with interrupts_blocked():
        worker = context.Process(target=work, args=(theirs,))
        worker.start()
    os.kill(worker.pid, signal.SIGINT)  # while it imports, long before it could ignore anything
    assert ours.recv() == worker.pid
    ours.send("end")
    worker.join()
    sys.exit(worker.exitcode)
"""


def test_ctrl_c_does_not_reach_a_worker_that_starts(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(SLOW_START)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def is_gone(pid, *, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
