"""slurm/devcluster is a real Slurm cluster, fails like one, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.handle import COMMAND, RUN_ROOT, DevCluster, devcluster_command, wait_for
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.cluster

NAMESPACES = ("net", "uts", "mnt", "pid", "ipc")
TALK = """\
import os, socket, sys
server, port, rank = sys.argv[1], 29400, int(os.environ["SLURM_PROCID"])
if rank == 0:
    with socket.create_server((socket.gethostname(), port)) as listener:
        connection, (peer, _) = listener.accept()
        print("rank 0 heard", connection.recv(100).decode(), "from", peer)
else:
    for _ in range(100):
        try:
            connection = socket.create_connection((server, port), timeout=1)
            break
        except OSError:
            __import__("time").sleep(0.1)
    connection.sendall(socket.gethostname().encode())
"""
SAVES_ON_SIGNAL = """\
#!/bin/bash
echo started restart=${SLURM_RESTART_COUNT:-0}
trap 'echo signalled' USR2
for i in {1..600}; do sleep 0.2; done
"""


def host_processes(name: str) -> list[int]:
    """The machine's pids of everything in a cluster's namespaces."""
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    inside = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            foreign = any(os.readlink(entry / "ns" / kind) != own[kind] for kind in NAMESPACES)
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or a zombie
            continue
        if foreign and f"devcluster.host {name} ".encode() in b" ".join(words):
            inside.append(int(entry.name))
    return inside


def namespaces_of(pids: list[int]) -> set[str]:
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in NAMESPACES} - own


def namespaces_in_use() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/*"):
        try:
            found.add(os.readlink(path))
        except OSError:  # ended meanwhile, or a zombie
            continue
    return found


def machine_state() -> dict[str, object]:
    """What a cluster might change of the machine."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return {
        "interfaces": sorted(path.name for path in Path("/sys/class/net").glob("ssdc*")),
        "mounts of a cluster": [line for line in mounts.splitlines() if str(RUN_ROOT) in line],
        "folders": sorted(path.name for path in RUN_ROOT.glob("*")),
        "hosts file": Path("/etc/hosts").read_bytes(),
        "network names": sorted(path.name for path in Path("/run/netns").glob("*")),
    }


def test_every_host_is_a_host_of_its_own(devcluster: DevCluster) -> None:
    count = len(devcluster.hosts)
    assert sorted(devcluster.run(["srun", f"-N{count}", "hostname"]).split()) == devcluster.hosts
    script = f"for k in {' '.join(NAMESPACES)}; do readlink /proc/self/ns/$k; done"
    seen = devcluster.run(["srun", f"-N{count}", "sh", "-c", script]).split()
    assert len(set(seen)) == count * len(NAMESPACES)


def test_hosts_talk_to_each_other_by_name(devcluster: DevCluster, tmp_path: Path) -> None:
    talk = tmp_path / "talk.py"
    talk.write_text(TALK, encoding="utf-8")
    said = devcluster.run(["srun", "-N2", "-w", "n1,n2", sys.executable, talk, "n1"])
    assert said.startswith("rank 0 heard n2 from 198.19.")


def test_folders_are_shared_but_tmp_and_shared_memory_are_not(
    devcluster: DevCluster, tmp_path: Path
) -> None:
    name = f"{devcluster.name}-$(hostname)"
    script = f"touch /tmp/{name} /dev/shm/{name} {tmp_path}/{name}; ls /tmp /dev/shm"
    seen = devcluster.run(["srun", "-N2", "-w", "n1,n2", "sh", "-c", script]).split()
    marks = [f"{devcluster.name}-{host}" for host in ("n1", "n2")]
    assert sorted(path.name for path in tmp_path.iterdir()) == marks
    for mark in marks:
        assert seen.count(mark) == 2  # its own in each of two folders, and no one else's
        assert not any(Path(folder, mark).exists() for folder in ("/tmp", "/dev/shm"))
    devcluster.run(["srun", "-N2", "test", "-x", COMMAND])


def test_a_user_without_root_can_submit_but_not_read_secrets(
    devcluster: DevCluster,
) -> None:
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    assert devcluster.run([*nobody, "srun", "--chdir=/", "id", "-un"]).strip() == "nobody"
    folder = RUN_ROOT / devcluster.name
    listed = subprocess.run(
        [*nobody, "cat", folder / "munge.key"], capture_output=True, text=True, check=False
    )
    assert "Permission denied" in listed.stderr


def test_no_file_of_a_cluster_is_writable_by_others(devcluster: DevCluster) -> None:
    found = list((RUN_ROOT / devcluster.name).rglob("*"))
    modes = {path: path.lstat().st_mode for path in found}
    files = [path for path, mode in modes.items() if not stat.S_ISSOCK(mode)]
    assert len(files) > 20
    assert [path for path in files if modes[path] & stat.S_IWOTH] == []


def test_nothing_listens_on_the_machine(devcluster: DevCluster) -> None:
    listening = subprocess.run(["ss", "-tlnpH"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listening for name in ("slurm", "munge", "maria"))


def test_up_again_is_fine_and_other_options_are_refused(
    devcluster: DevCluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = host_processes(devcluster.name)
    named = ["--name", devcluster.name, "--share", str(tmp_path_factory.getbasetemp())]
    again = devcluster_command("up", *named, "--hosts", "8")
    assert again.returncode == 0, again.stderr
    assert host_processes(devcluster.name) == before
    other = devcluster_command("up", *named, "--hosts", "3")
    assert other.returncode == 2
    assert "--hosts 8" in other.stderr
    assert "devcluster down" in other.stderr


def test_a_preempted_job_is_signalled_at_once_and_requeued(
    devcluster: DevCluster, tmp_path: Path
) -> None:
    script, output = tmp_path / "job.sh", tmp_path / "output.txt"
    script.write_text(SAVES_ON_SIGNAL, encoding="utf-8")
    options = ["-N8", "--exclusive", "--requeue", "--open-mode=append", f"--output={output}"]
    job_id = devcluster.submit(script, *options, "--signal=B:USR2@30", "--time=20")
    wait_for(lambda: output.exists() and output.stat().st_size > 0, 20, what="the job's start")
    urgent = ["srun", "-p", "urgent", "-N8", "--exclusive", "hostname"]
    with subprocess.Popen(urgent, env=devcluster.env, stdout=subprocess.PIPE, text=True) as winner:
        wait_for(lambda: "signalled" in output.read_text(), 10, what="the signal")
        assert devcluster.job(job_id)["JobState"] == "RUNNING"  # it has time to save
        hosts, _ = winner.communicate(timeout=PATIENCE_S)
    assert sorted(hosts.split()) == devcluster.hosts
    job = devcluster.job(job_id)
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1")


def test_a_killed_host_is_noticed_and_its_job_requeued_elsewhere(
    devcluster: DevCluster, tmp_path: Path
) -> None:
    script, output = tmp_path / "job.sh", tmp_path / "output.txt"
    script.write_text("#!/bin/bash\nhostname\nsrun sleep 300\n", encoding="utf-8")
    options = ["-N2", "-w", "n1,n2", "--requeue", "--open-mode=append", f"--output={output}"]
    job_id = devcluster.submit(script, *options)
    wait_for(lambda: devcluster.job(job_id)["JobState"] == "RUNNING", 20, what="the job's start")
    devcluster.kill("n2")
    assert "n2 " in devcluster.control("status")

    def requeued() -> bool:
        return devcluster.job(job_id)["Restarts"] == "1"

    wait_for(requeued, 90, what="the requeue")
    assert devcluster.host_states()["n2"].startswith("down")
    devcluster.start("n2")
    assert devcluster.host_states()["n2"] == "idle"
    assert devcluster.run(["srun", "-w", "n2", "hostname"]).strip() == "n2"


def test_a_job_outlives_the_controller(devcluster: DevCluster, tmp_path: Path) -> None:
    script, output = tmp_path / "job.sh", tmp_path / "output.txt"
    script.write_text("#!/bin/bash\nsleep 10\necho survived\n", encoding="utf-8")
    job_id = devcluster.submit(script, f"--output={output}")
    wait_for(lambda: devcluster.job(job_id)["JobState"] == "RUNNING", 20, what="the job's start")
    began, saved = time.time(), RUN_ROOT / devcluster.name / "state" / "job_state"
    wait_for(lambda: saved.stat().st_mtime > began, 10, what="slurmctld saving its state")
    devcluster.kill("ctl")
    assert "the controller is down" in devcluster.control("status")
    devcluster.start("ctl")
    wait_for(lambda: devcluster.job(job_id)["JobState"] == "COMPLETED", 40, what="the job's end")
    assert output.read_text() == "survived\n"


def test_stand_in_gpus_are_counted_and_assigned(gpu_cluster: DevCluster) -> None:
    cluster = gpu_cluster
    show = ["sh", "-c", "echo $SLURM_PROCID:$CUDA_VISIBLE_DEVICES"]
    one_each = cluster.run(["srun", "-n2", "--gpus-per-node=2", "--gpus-per-task=1", *show])
    assert sorted(one_each.split()) == ["0:0", "1:1"]
    assert cluster.run(["srun", "--gpus-per-node=2", *show]).strip() == "0:0,1"


@pytest.mark.slow
@pytest.mark.usefixtures("failed_job")  # a later test waits until slurmctld has forgotten it
def test_accounting_remembers_a_finished_job(accounting_cluster: DevCluster) -> None:
    cluster = accounting_cluster
    cluster.run(["srun", "--job-name=remembered", "true"])
    fields = ["--noheader", "--parsable2", "--allocations", "--format=JobName,State"]

    def remembered() -> bool:
        return "remembered|COMPLETED" in cluster.run(["sacct", *fields])

    wait_for(remembered, 20, what="the job in sacct")


@pytest.mark.usefixtures("quiet_machine")
def test_up_and_down_leave_nothing_behind() -> None:
    before, name = machine_state(), f"pytest{os.getpid()}_down"
    assert devcluster_command("up", "--name", name, "--hosts", "2").returncode == 0
    env = DevCluster(name, []).env
    subprocess.run(["sbatch", "--wrap", "sleep 300", "-o", "/dev/null"], env=env, check=True)
    shell = [COMMAND, "shell", "--name", name, "n2", "--", "sleep", "30"]
    with subprocess.Popen(shell) as visitor:
        pids = host_processes(name)
        used = namespaces_of(pids)
        assert len(pids) >= 4
        assert len(used) >= 4 * len(NAMESPACES)
        assert machine_state() != before
        assert devcluster_command("down", "--name", name).returncode == 0
        assert visitor.wait(10) != 0
    assert machine_state() == before
    assert host_processes(name) == []
    assert used & namespaces_in_use() == set()
    assert devcluster_command("down", "--name", name).returncode == 0  # twice is fine


@pytest.mark.usefixtures("quiet_machine")
@pytest.mark.parametrize("after_s", [0.2, 0.5, 0.9])
def test_down_clears_what_a_killed_up_left(after_s: float) -> None:
    before, name = machine_state(), f"pytest{os.getpid()}_crash"
    with subprocess.Popen([sys.executable, COMMAND, "up", "--name", name, "--hosts", "4"]) as up:
        time.sleep(after_s)
        up.kill()
    assert devcluster_command("down", "--name", name).returncode == 0
    wait_for(lambda: host_processes(name) == [], 5, what="the end of all processes")
    assert machine_state() == before


@pytest.mark.usefixtures("quiet_machine")
def test_a_terminated_up_takes_down_what_it_began() -> None:
    before, name = machine_state(), f"pytest{os.getpid()}_term"
    with subprocess.Popen([sys.executable, COMMAND, "up", "--name", name, "--hosts", "4"]) as up:
        wait_for(lambda: len(host_processes(name)) > 0, 10, what="the first process")
        up.send_signal(signal.SIGTERM)
        assert up.wait(20) == 128 + signal.SIGTERM
    assert machine_state() == before
    assert host_processes(name) == []


@pytest.mark.usefixtures("quiet_machine")
def test_a_daemon_that_fails_is_named_with_its_log() -> None:
    before, name = machine_state(), f"pytest{os.getpid()}_fail"
    slurmd = os.path.realpath(shutil.which("slurmd", path="/usr/sbin") or "")
    hide = f'mount --bind /bin/false "{slurmd}" && exec "$@"'  # in a mount namespace of its own
    up = [COMMAND, "up", "--name", name, "--hosts", "2"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", *up],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "slurmd ended with exit status 1; the end of slurmd.log" in done.stderr
    assert machine_state() == before


@pytest.mark.usefixtures("quiet_machine")
def test_missing_packages_are_named_with_the_command_that_installs_them() -> None:
    hide = 'mount -t tmpfs none /usr/sbin && exec "$@"'  # in a mount namespace of its own
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, COMMAND, "up"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    packages = " ".join((COMMAND.parent / "packages.txt").read_text().split())
    assert f"apt-get install --no-install-recommends {packages}" in done.stderr
    assert "slurmctld (slurm-wlm)" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root, so it needs root")
def test_without_root_up_says_so() -> None:
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    done = subprocess.run(
        [*nobody, python, COMMAND, "up"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "namespaces need root; use sudo" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["up", "--hosts", "0"], "give a number from 1 to 200"),
        (["up", "--name", "No/Name"], "use a letter"),
        (["env", "--name", "nothing"], "run `devcluster up` first"),
    ],
)
def test_wrong_arguments_are_refused_with_a_remedy(arguments: list[str], remedy: str) -> None:
    done = devcluster_command(*arguments)
    assert done.returncode == 2
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
