import signal
from dataclasses import replace

import pytest

from supersam.cluster.slurm.restart_policy import Ending, next_action, pick_hosts
from supersam.health.watchdog import STALLED

CRASH = Ending(1, cancelled=False, requeued=False, lost_hosts=(), noticed=False, preempted=False)


def act(ending: Ending, *, stalled: int = 1, hosts: str = "ab", others: bool = False) -> str:
    return next_action(ending, stalled=stalled, most_stalled=3, hosts=list(hosts), others=others)


@pytest.mark.parametrize(
    ("ending", "reason", "action"),
    [
        (replace(CRASH, exit_code=0), "finished", "exit"),
        (CRASH, "failed", "restart"),
        (replace(CRASH, exit_code=137), "failed", "restart"),
        (replace(CRASH, exit_code=STALLED), "stuck", "restart"),
        (replace(CRASH, exit_code=2), "failed", "exit"),
        (replace(CRASH, lost_hosts=("n2",)), "node failure", "restart"),
        (replace(CRASH, lost_hosts=("n2",), requeued=True), "node failure", "exit"),
        (replace(CRASH, exit_code=128 + signal.SIGUSR2), "signal USR2", "requeue"),
        (replace(CRASH, exit_code=140, noticed=True), "time limit", "requeue"),
        (replace(CRASH, exit_code=140, noticed=True, preempted=True), "preempted", "requeue"),
        (replace(CRASH, exit_code=143, requeued=True), "requeued", "exit"),
        (replace(CRASH, exit_code=143, preempted=True), "preempted", "requeue"),
        (
            replace(CRASH, exit_code=143, requeued=True, preempted=True),
            "preempted without notice",
            "exit",
        ),
        (replace(CRASH, exit_code=None, requeued=True), "requeued", "exit"),
        (replace(CRASH, exit_code=None, noticed=True), "time limit", "requeue"),
        (replace(CRASH, exit_code=140, cancelled=True), "cancelled", "exit"),
        (replace(CRASH, exit_code=None, cancelled=True), "cancelled", "exit"),
    ],
)
def test_each_ending_has_its_reason_and_its_consequence(ending, reason, action):
    assert (ending.reason, act(ending)) == (reason, action)


def test_a_run_without_enough_hosts_goes_back_to_the_queue():
    assert act(replace(CRASH, lost_hosts=("n2",)), hosts="") == "requeue"


@pytest.mark.parametrize(
    ("blamed", "others", "action"),
    [
        ("b", True, "requeue"),
        ("b", False, "restart"),
        ("c", True, "restart"),
        (None, True, "restart"),
    ],
)
def test_a_run_leaves_the_host_that_hung_where_others_can_be_had(blamed, others, action):
    stuck = replace(CRASH, exit_code=STALLED, blamed_host=blamed)
    assert act(stuck, others=others) == action


@pytest.mark.parametrize("ending", [CRASH, replace(CRASH, exit_code=140, noticed=True)])
def test_a_run_without_progress_is_given_up_at_the_limit(ending):
    assert act(ending, stalled=2) != "exit"
    assert act(ending, stalled=3) == "exit"


@pytest.mark.parametrize(
    ("here", "bad", "counts", "expected"),
    [
        ("abcd", "", [1, 2, 4], "abcd"),
        ("abcd", "b", [1, 2, 4], "ac"),
        ("abcd", "b", [4], "abcd"),  # it is needed: the run goes on with it
        ("abc", "", [1, 2, 4], "ab"),
        ("a", "a", [1, 2], "a"),
        ("a", "", [2], ""),
    ],
)
def test_blamed_hosts_are_left_out_where_the_others_suffice(here, bad, counts, expected):
    assert pick_hosts(list(here), bad=set(bad), counts=counts) == list(expected)
