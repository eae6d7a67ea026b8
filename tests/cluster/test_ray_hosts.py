from __future__ import annotations

import os
import socket
import stat

import pytest

from supersam.cluster.search.ray_host import choose_ports, ray_command, read_head_address
from supersam.config import UserError
from supersam.search.ray.address import RayAddress, ray_environment, require_short

HOST = "127.0.0.1"


def test_ports_in_use_are_passed_over():
    first = choose_ports(8, host=HOST, key="job 1")
    assert first == choose_ports(8, host=HOST, key="job 1")
    with socket.socket() as taken:
        taken.bind((HOST, first[3]))
        other = choose_ports(8, host=HOST, key="job 1")
    assert not set(other) & {first[3]}
    assert other == list(range(other[0], other[0] + 8))


def test_two_jobs_on_a_host_take_other_ports():
    assert choose_ports(8, host=HOST, key="job 1") != choose_ports(8, host=HOST, key="job 2")


def test_ray_is_told_everything_it_would_guess():
    ports = list(range(21000, 21020))
    head = ray_command(ports, ip="10.0.0.1", folder="/tmp/ss-x", tag="ss-1", head=None)
    worker = ray_command(
        ports, ip="10.0.0.2", folder="/tmp/ss-x", tag="ss-1", head="10.0.0.1:21000"
    )
    own = {"--head", "--port=21000", "--ray-client-server-port=21001", "--include-dashboard=false"}
    assert own <= set(head)
    assert "--address=10.0.0.1:21000" in worker
    assert not any(word.startswith(("--port=", "--ray-client", "--head")) for word in worker)
    for command in (head, worker):
        names = {word.split("=")[0] for word in command}
        assert {"--num-cpus", "--num-gpus", "--temp-dir", "--object-store-memory"} <= names
        assert {"--node-ip-address", "--worker-port-list", "--disable-usage-stats"} <= names
        assert f"--num-cpus={len(os.sched_getaffinity(0))}" in command


def test_a_head_that_never_appears_is_reported(tmp_path):
    with pytest.raises(UserError, match="did not appear within 0.3 s"):
        read_head_address(tmp_path / "ray" / "1-0.json", deadline_s=0.3)


def test_the_token_is_for_the_user_alone(tmp_path):
    from supersam.cluster.search.ray_host import write_head_address

    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        found = RayAddress(f"{HOST}:{server.getsockname()[1]}", "ss-1", "secret")
        write_head_address(tmp_path / "ray" / "1-0.json", found)
        assert read_head_address(tmp_path / "ray" / "1-0.json") == found
    assert stat.S_IMODE((tmp_path / "ray" / "1-0.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ray").stat().st_mode) == 0o700
    assert ray_environment("secret")["RAY_AUTH_TOKEN"] == "secret"


def test_a_folder_too_long_for_sockets_is_refused():
    require_short("/tmp/ss-abcdefgh")
    with pytest.raises(UserError, match="set TMPDIR"):
        require_short("/scratch/" + "x" * 60)
