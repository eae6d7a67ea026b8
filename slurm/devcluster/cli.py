"""A real Slurm cluster on one machine, each host in its own namespaces."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from devcluster import lifecycle
from devcluster.boot import is_alive, read_record
from devcluster.errors import DevclusterError, UsageError
from devcluster.layout import (
    CONTROLLER,
    MAX_HOSTS,
    PROJECT,
    SWITCH,
    Cluster,
    check_name,
    load_cluster,
)
from devcluster.requirements import require_machine, require_root
from devcluster.slurm import ask, client_env, node_states

DEFAULT_NAME = "devcluster"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 2 is the caller's to mend, 1 a failure."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    options = _parser().parse_args(argv)
    try:
        check_name(options.name)
        return int(options.run(options))
    except DevclusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that `up` takes down what it began


def _parser() -> argparse.ArgumentParser:
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=DEFAULT_NAME, help="which cluster (%(default)s)")
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        run: Callable[[argparse.Namespace], int], text: str, *arguments: str
    ) -> argparse.ArgumentParser:
        name = run.__name__.strip("_")
        command = commands.add_parser(name, parents=[named], help=text, description=text)
        command.set_defaults(run=run)
        for argument in arguments:
            command.add_argument(argument, metavar=argument.upper())
        return command

    _add_size(add(_up, "start a cluster and wait until all hosts can take jobs"))
    add(_down, "end a cluster and remove all it made")
    add(_status, "hosts, Slurm's states, jobs")
    add(_kill, "a host's power cut", "host")
    add(_start, "boot a host that is down", "host")
    shell = add(_shell, "a shell, or a command, on a host", "host")
    shell.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    add(_env, 'lines for eval "$(devcluster env)": then sbatch, srun and squeue work here')
    add(_check, "whether this machine can run a cluster; says what is missing")
    return parser


def _add_size(command: argparse.ArgumentParser) -> None:
    def number(low: int, high: int) -> Callable[[str], int]:
        def parse(text: str) -> int:
            if not (text.isdecimal() and low <= int(text) <= high):
                raise argparse.ArgumentTypeError(f"{text!r}; give a number from {low} to {high}")
            return int(text)

        return parse

    sizes = {"hosts": (8, 1, MAX_HOSTS), "gpus": (0, 0, 64), "cpus-per-host": (2, 1, 1024)}
    sizes["memory-mib"] = (3000, 256, 1 << 22)
    for name, (default, low, high) in sizes.items():
        command.add_argument(
            f"--{name}",
            type=number(low, high),
            default=default,
            metavar="N",
            help=f"{name.replace('-', ' ')} ({default})",
        )
    command.add_argument("--accounting", action="store_true", help="slurmdbd, so sacct works")
    command.add_argument(
        "--constrain-memory",
        action="store_true",
        help="jobs get the memory they ask for, and die of more (cgroup v1 machines)",
    )
    command.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder under /tmp that hosts share with the machine; may repeat",
    )


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    wanted = Cluster(
        name=options.name,
        number=0,
        hosts=options.hosts,
        cpus_per_host=options.cpus_per_host,
        memory_mib=options.memory_mib,
        gpus=options.gpus,
        accounting=options.accounting,
        constrain_memory=options.constrain_memory,
        shared=tuple(_shared_folder(path) for path in [str(PROJECT), *options.share]),
    )
    cluster = lifecycle.up(wanted)
    flag = "" if cluster.name == DEFAULT_NAME else f" --name {cluster.name}"
    me = shlex.quote(os.path.relpath(PROJECT / "slurm/devcluster/devcluster"))
    lines = [
        f"{cluster.hosts} hosts ready after {time.monotonic() - began:.1f} s; next:",
        f'  eval "$({me} env{flag})"',
        f"  srun -N{cluster.hosts} hostname",
        f"  {me} down{flag}",
    ]
    print("\n".join(lines))
    return 0


def _shared_folder(path: str) -> str:
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise UsageError(f"--share {path} is not a folder; make it first")
    return str(folder)


def _down(options: argparse.Namespace) -> int:
    require_root("down")
    lifecycle.down(options.name)
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = load_cluster(options.name)
    if cluster is None:
        print(f"cluster {options.name} is down")
        return 1
    states, jobs = _ask_controller(cluster)
    print(f"cluster {cluster.name}, {cluster.subnet}, {cluster.folder}")
    print(f"{'HOST':<8}{'ADDRESS':<16}{'MACHINE':<9}SLURM")
    for host in (CONTROLLER, *cluster.host_names):
        machine = "up" if is_alive(cluster, host) else "down"
        print(f"{host:<8}{cluster.address(host):<16}{machine:<9}{states.get(host, '-')}")
    print(jobs, end="")
    return 0


def _ask_controller(cluster: Cluster) -> tuple[dict[str, str], str]:
    """Slurm's states of the hosts, and its table of jobs or why there is none."""
    if not is_alive(cluster, CONTROLLER):
        return {}, f"the controller is down; run `devcluster start {CONTROLLER}`\n"
    try:
        return node_states(cluster), ask(cluster, "squeue", "--all")
    except DevclusterError as error:
        return {}, f"no answer from the controller: {error}\n"


def _kill(options: argparse.Namespace) -> int:
    require_root("kill")
    lifecycle.kill(*_cluster_and_host(options))
    return 0


def _start(options: argparse.Namespace) -> int:
    require_root("start")
    lifecycle.start(*_cluster_and_host(options))
    return 0


def _shell(options: argparse.Namespace) -> int:
    require_root("shell")
    cluster, host = _cluster_and_host(options)
    if not is_alive(cluster, host):
        raise UsageError(f"host {host} is down; run `devcluster start {host}`")
    given = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = given or [os.environ.get("SHELL", "/bin/sh")]
    # The folder is entered by name inside the host: the machine's own handle sees no host mounts.
    enter = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", os.getcwd(), *command]
    namespaces = ["--net", "--uts", "--mount", "--pid", "--ipc"]
    argv = ["nsenter", f"--target={read_record(cluster, host).pid}", *namespaces, "--", *enter]
    os.execvpe("nsenter", argv, client_env(cluster))


def _env(options: argparse.Namespace) -> int:
    print(f"export SLURM_CONF={shlex.quote(str(_cluster(options).slurm_conf))}")
    return 0


def _check(options: argparse.Namespace) -> int:
    require_machine(accounting=True)
    return 0


def _cluster(options: argparse.Namespace) -> Cluster:
    cluster = load_cluster(options.name)
    if cluster is None:
        raise UsageError(f"cluster {options.name} is down; run `devcluster up` first")
    return cluster


def _cluster_and_host(options: argparse.Namespace) -> tuple[Cluster, str]:
    cluster = _cluster(options)
    hosts = [host for host in cluster.machines if host != SWITCH]
    if options.host not in hosts:
        raise UsageError(f"no host {options.host!r}; choose one of {' '.join(hosts)}")
    return cluster, options.host
