"""Every node-hour is either productive or lost to a named cause."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from supersam.health.records import AttemptTimes
from supersam.runs.attempts import AttemptEvent
from supersam.status.goodput import measure_goodput

HOUR = 3600.0


def times(start: float, first: int, last: int, **seconds: float) -> AttemptTimes:
    return AttemptTimes(
        started=start,
        updated=start + sum(seconds.values()),
        first_step=first,
        last_step=last,
        world_size=4,
        nodes=2,
        seconds=seconds,
    )


def event(attempt: int, kind: str, when: float, reason: str | None = None) -> AttemptEvent:
    return AttemptEvent(
        attempt=attempt,
        event=kind,
        time=when,
        job_id="7",
        restart_count=attempt - 1,
        hosts=("n1", "n1", "n2", "n2"),
        world_size=4,
        step=0,
        reason=reason,
    )


@pytest.fixture
def interrupted() -> tuple[list[AttemptEvent], list[AttemptTimes]]:
    """An hour cut short by a dead node (20 of 100 steps are taken again), then a second one."""
    first = times(100.0, 0, 100, starting=500.0, training=1000.0, saving=200.0, unfinished=300.0)
    second = times(HOUR + 1000, 80, 200, starting=500.0, training=1200.0)
    events = [
        event(1, "start", 0.0),
        event(1, "end", HOUR, "node failure"),
        event(2, "start", HOUR + 900),
        event(2, "end", HOUR + 2700, "finished"),
    ]
    return events, [first, second]


def test_an_attempt_that_died_before_any_sign_of_life_takes_no_hours_back(interrupted) -> None:
    events, accounts = interrupted
    before = measure_goodput(events, accounts, now=HOUR + 2700)
    died = [*events, event(3, "start", HOUR + 9000)]
    after = measure_goodput(died, accounts, now=HOUR + 2700)
    assert after.allocated_node_h == before.allocated_node_h
    assert all(hours >= 0 for hours in after.lost_node_h.values())


def test_an_attempt_that_ended_too_soon_has_no_account_of_its_own() -> None:
    events = [
        event(1, "start", 0.0),
        event(1, "end", 8.0, "failed"),
        event(2, "start", 9.0),
        event(2, "end", 9.0 + HOUR, "finished"),
    ]
    account = times(20.0, 0, 100, starting=100.0, training=3000.0)
    goodput = measure_goodput(events, [account], now=0.0)
    assert goodput.allocated_node_h == pytest.approx(2 * (HOUR + 8) / HOUR)
    assert goodput.productive_node_h == pytest.approx(2 * 3000 / HOUR)
    assert goodput.lost_node_h["no step before the end: failed"] == pytest.approx(2 * 8 / HOUR)
    parts = goodput.productive_node_h + sum(goodput.lost_node_h.values())
    assert parts == pytest.approx(goodput.allocated_node_h)


def test_the_parts_make_the_whole(interrupted) -> None:
    goodput = measure_goodput(*interrupted, now=0.0)
    assert goodput.allocated_node_h == pytest.approx(2 * (HOUR + 1800) / HOUR)
    parts = goodput.productive_node_h + sum(goodput.lost_node_h.values())
    assert parts == pytest.approx(goodput.allocated_node_h)
    assert min(goodput.lost_node_h.values()) > 0


def test_steps_taken_again_and_waiting_are_lost_to_the_reason_of_the_end(interrupted) -> None:
    goodput = measure_goodput(*interrupted, now=0.0)
    assert goodput.productive_node_h == pytest.approx(2 * (800 + 1200) / HOUR)
    lost_s = {cause: hours * HOUR / 2 for cause, hours in goodput.lost_node_h.items()}
    assert lost_s["steps taken again: node failure"] == pytest.approx(200)
    assert lost_s["checkpoints"] == pytest.approx(200)
    assert lost_s["start-up"] == pytest.approx(100 + 500 + 100 + 500)
    assert lost_s["waiting for the end: node failure"] == pytest.approx(HOUR - 1800)
    assert list(lost_s) == sorted(lost_s, key=lambda cause: -lost_s[cause])


def test_no_step_is_taken_again_before_the_next_attempt_has_taken_one(interrupted) -> None:
    events, (first, second) = interrupted
    begins = replace(second, last_step=second.first_step, seconds={"starting": 60.0})
    goodput = measure_goodput(events[:3], [first, begins], now=HOUR + 1000)
    assert goodput.productive_node_h == pytest.approx(2 * 1000 / HOUR)
    assert not any("taken again" in cause for cause in goodput.lost_node_h)


def test_an_attempt_without_a_step_is_wholly_lost() -> None:
    events = [event(1, "start", 0.0), event(1, "end", 60.0, "failed")]
    goodput = measure_goodput(events, [], now=0.0)
    assert goodput.share == 0
    assert goodput.lost_node_h == {"no step before the end: failed": pytest.approx(120 / HOUR)}


def test_a_run_that_nobody_recorded_is_measured_by_rank_0_alone() -> None:
    goodput = measure_goodput([], [times(5.0, 0, 10, starting=25.0, training=75.0)], now=0.0)
    assert math.isclose(goodput.share, 0.75)
    assert measure_goodput([], [], now=0.0).share == 0
