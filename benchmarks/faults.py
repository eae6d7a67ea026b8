"""Seconds that faults cost a training on Slurm: the fault, its notice, the next step.

python -m benchmarks.faults [--quick] [--hosts 8]

Starts a cluster of its own with slurm/devcluster (root), trains the demo's model on it, and breaks
things: a rank is killed, a rank is stopped, Slurm gives notice, the time limit comes, a host loses
its power with and without a spare one. Prints a table and, last, one line of JSON. --quick: two
hosts and a killed rank.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.jobs import read_job
from supersam.cluster.slurm.submit import submitted_job
from supersam.health.records import read_heartbeats, read_status, saved_step
from supersam.runs.attempts import read_attempts

ROOT = Path(__file__).parents[1]
DEVCLUSTER = ROOT / "slurm" / "devcluster" / "devcluster"
PATIENCE_S = 900
POLL_S = 0.1
LIMIT_MIN = 120
FLAGS = (
    *("--optim.steps", "100000", "--checkpoint.every-steps", "10", "--data.workers", "0"),
    *("--checkpoint.validate-every-steps", "100000", "--engine.log-every", "1"),
    *("--watchdog.heartbeat-s", "1", "--watchdog.stall-s", "10", "--time", str(LIMIT_MIN)),
    *("--signal-delay-s", "60"),
    # Short steps of the demo's model: what is timed is what comes between them.
    *("--engine.precision", "fp32", "--model.image-size", "64", "--data.prompts-per-image", "1"),
    *("--sandwich.random-subnets", "0"),
)


class Cluster:
    """A devcluster of this benchmark's own. A context manager."""

    def __init__(self, hosts, place):
        self.name, self.hosts, self.place = f"faults{os.getpid()}", hosts, place

    def __enter__(self):
        self.control("up", "--hosts", str(self.hosts), "--share", str(self.place))
        conf = Path("/run/supersam-devcluster") / self.name / "etc" / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT)}
        self.env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        os.environ["SLURM_CONF"] = str(conf)
        return self

    def __exit__(self, *fault):
        self.control("down")

    def control(self, command, *words):
        """Run a command of devcluster on it."""
        subprocess.run(
            [DEVCLUSTER, command, "--name", self.name, *words],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )

    def signal(self, beat, number):
        """Send a signal to a rank, on its own host."""
        self.control("shell", beat.host, "--", "kill", f"-{number}", str(beat.pid))


class Run:
    """A training of the demo on the cluster."""

    def __init__(self, cluster, name, *flags):
        self.cluster, self.folder = cluster, cluster.place / name
        self.submitted = time.time()
        config = ROOT / "configs" / "train" / "demo.yaml"
        words = ["--config", config, "--run", self.folder, *FLAGS, *flags]
        subprocess.run(
            [sys.executable, ROOT / "launch" / "train.py", *words],
            env=cluster.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def first_step(self, attempt):
        """When the first step of an attempt was seen, Unix seconds."""
        log = self.folder / "logs" / f"task-00000.attempt-{attempt:03d}.log"
        wait(lambda: log.exists() and "I step " in log.read_text(), f"attempt {attempt}")
        return time.time()

    def last_step(self, attempt):
        """The last step that an attempt took."""
        lines = (self.folder / "logs" / f"task-00000.attempt-{attempt:03d}.log").read_text()
        return int(lines.rpartition("I step ")[2].split()[0])

    def suffer(self, name, attempt, fault):
        """Break something in an attempt that has saved since it began. Returns a row.

        fault: breaks it and returns when, Unix seconds. It is noticed when the attempt ends.
        """
        began = self.event("start", attempt).step
        wait(lambda: saved_step(self.folder) > began, f"a checkpoint of attempt {attempt}")
        at = fault()
        wait(lambda: self.event("start", attempt + 1) is not None, f"the attempt after {name}")
        end, start = self.event("end", attempt), self.event("start", attempt + 1)
        after = self.first_step(attempt + 1)
        row = {
            "fault": name,
            "noticed_s": end.time - at,
            "noticed_to_start_s": start.time - end.time,
            "noticed_to_step_s": after - end.time,
            "fault_to_step_s": after - at,
            "steps_lost": self.last_step(attempt) - start.step,
            "by": "requeue" if start.restart_count > end.restart_count else "restart in place",
        }
        print_row(row)
        return row

    def event(self, kind, attempt):
        """The start or end of an attempt; None where it is not recorded yet."""
        events = read_attempts(self.folder)
        return next((e for e in events if (e.event, e.attempt) == (kind, attempt)), None)

    def restarts(self):
        """How often the job was requeued when its last attempt began."""
        return read_attempts(self.folder)[-1].restart_count

    def cancel(self):
        """End it; all its hosts are free afterwards."""
        command = [sys.executable, ROOT / "launch" / "status.py", self.folder, "--cancel"]
        subprocess.run(command, env=self.cluster.env, check=True, stdout=subprocess.DEVNULL)

        def free() -> bool:
            return subprocess.check_output(["squeue", "--noheader"]).strip() == b""

        wait(free, "the end of the job")


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster ends with this process
    place = Path(tempfile.mkdtemp(prefix="supersam-faults-", dir="/var/tmp"))
    hosts = 2 if args.quick else args.hosts
    try:
        with Cluster(hosts, place) as cluster:
            start, rows = measure(cluster, quick=args.quick)
    finally:
        shutil.rmtree(place)
    facts = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    facts |= {"load_average": os.getloadavg(), "commit": commit()}
    print(json.dumps({"faults": {"start": start, "rows": rows, **facts}}))
    return 0


def measure(cluster, *, quick):
    """Start-up on all hosts, and a row for each fault."""
    broken = Run(cluster, "broken", "--nodes", "2")
    if quick:
        start = began_and_saved(broken)
        row = broken.suffer("rank killed", 1, lambda: kill(broken, "KILL"))
        broken.cancel()
        return start, [row]
    broken.first_step(1)
    rows = [
        broken.suffer("rank killed", 1, lambda: kill(broken, "KILL")),
        broken.suffer("rank stopped", 2, lambda: kill(broken, "STOP")),
        broken.suffer("notice (USR2)", 3, lambda: notify(broken)),
        broken.suffer("time limit", 4, lambda: reach_limit(broken)),
    ]
    rows.append(lose_host(broken, "host lost, no spare", 5))
    broken.cancel()
    spared = Run(cluster, "spared", "--nodes", "2", "--spare-nodes", "1")
    spared.first_step(1)
    rows.append(lose_host(spared, "host lost, one spare", 1))
    spared.cancel()
    for host in range(1, cluster.hosts + 1):
        cluster.control("start", f"n{host}")
    whole = Run(cluster, "whole", "--nodes", str(cluster.hosts))
    start = began_and_saved(whole)
    whole.cancel()
    return start, rows


def began_and_saved(run):
    """Seconds from submission to the first step, and what checkpoints cost."""
    seconds = run.first_step(1) - run.submitted
    start = {"hosts": len(set(run.event("start", 1).hosts)), "submit_to_step_s": seconds}
    wait(lambda: saved_step(run.folder) >= 20, "two checkpoints")
    start |= checkpoints(run)
    print(json.dumps(start), flush=True)
    return start


def checkpoints(run):
    """Bytes of a checkpoint, and seconds that the training stood still for one."""
    saves = saved_step(run.folder) // 10
    seconds = read_status(run.folder).attempts[-1].seconds["saving"]
    newest = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
    size = sum(file.stat().st_size for file in newest.iterdir())
    return {"checkpoint_mib": size / 2**20, "checkpoint_s": seconds / saves}


def kill(run, number):
    """Send rank 1 a signal."""
    at = time.time()
    run.cluster.signal(read_heartbeats(run.folder)[1], number)
    return at


def notify(run):
    at = time.time()
    subprocess.run(["scancel", "--signal=USR2", submitted_job(run.folder)], check=True)
    return at


def reach_limit(run):
    """Lower the job's time limit to what is left for saving. Returns the time of the notice."""
    job = submitted_job(run.folder)
    log = run.folder / "slurm" / f"{job}_0_log.out"
    notices = log.read_text().count("told to save")
    began_s = LIMIT_MIN * 60 - read_job(job).time_left_s
    set_limit(job, began_s // 60 + 2)  # more than the minute for saving, or Slurm ends it at once
    wait(lambda: log.read_text().count("told to save") > notices, "Slurm's notice of the limit")
    at = time.time()
    wait(lambda: read_job(job).restarts > run.restarts(), "the requeue")
    set_limit(job, LIMIT_MIN)
    return at


def set_limit(job, minutes):
    slurm.run_command("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes:.0f}")


def lose_host(run, name, attempt):
    """Cut the power of rank 1's host. Returns the row."""
    host = run.event("start", attempt).hosts[1]

    def cut():
        at = time.time()
        run.cluster.control("kill", host)
        return at

    return run.suffer(name, attempt, cut)


def wait(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE_S} s")
        time.sleep(POLL_S)


def print_row(row):
    values = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
    print("  ".join(f"{name}={value}" for name, value in zip(row, values, strict=True)), flush=True)


def commit():
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two hosts and a killed rank")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
