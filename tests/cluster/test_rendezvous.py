import socket
import threading
import time

import pytest

from supersam.cluster.rendezvous import clear_rendezvous, free_port, join_step
from supersam.cluster.slurm.supervisor_lease import renew_lease, wait_for_expiry
from supersam.config import UserError


def task(rank: int, *, restart: int = 0, step: int = 0) -> dict[str, str]:
    place = {"PROCID": rank, "LOCALID": rank % 2, "NODEID": rank // 2, "NTASKS": 4, "NNODES": 2}
    job = {"JOB_ID": 7, "RESTART_COUNT": restart, "STEP_ID": step}
    return {f"SLURM_{name}": str(value) for name, value in (place | job).items()}


def test_a_chosen_port_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind(("", free_port()))
        listener.listen()


def test_the_ranks_of_a_step_learn_where_rank_0_is(tmp_path):
    found: dict[str, str] = {}
    waiting = threading.Thread(target=lambda: found.update(join_step(tmp_path, task(3))))
    waiting.start()
    first = join_step(tmp_path, task(0))
    waiting.join(timeout=5)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == (
        first["MASTER_ADDR"],
        first["MASTER_PORT"],
    )
    assert (found["RANK"], found["LOCAL_RANK"], found["GROUP_RANK"]) == ("3", "1", "1")
    assert (found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("4", "2")


@pytest.mark.parametrize("later", [{"restart": 1}, {"step": 1}])
def test_a_rank_never_meets_those_of_another_attempt(tmp_path, later):
    join_step(tmp_path, task(0))
    with pytest.raises(UserError, match="rank 0 did not say within"):
        join_step(tmp_path, task(1, **later), deadline_s=0.3)


def test_where_ranks_met_before_is_forgotten(tmp_path):
    join_step(tmp_path, task(0))
    clear_rendezvous(tmp_path)
    with pytest.raises(UserError, match="rank 0 did not say"):
        join_step(tmp_path, task(1), deadline_s=0.3)


def test_a_beat_puts_off_the_silence(tmp_path):
    renew_lease(tmp_path)
    began = time.monotonic()
    later = threading.Timer(0.5, renew_lease, [tmp_path])
    later.start()
    wait_for_expiry(tmp_path, poll_s=0.02, expire_s=1.0)
    assert time.monotonic() - began >= 0.5 + 1.0
    later.join()
