"""Where a run's node-hours went: steps that count, and what was lost to which cause."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from supersam.health.records import AttemptTimes
from supersam.runs.attempts import AttemptEvent

_CLOCKS_S = 30.0  # between the host that records an attempt and that of rank 0
_CAUSES = {
    "starting": "start-up",
    "validating": "validation",
    "prioritizing": "prioritization",
    "saving": "checkpoints",
}


@dataclass(frozen=True)
class Goodput:
    """Node-hours of all attempts of a run."""

    allocated_node_h: float
    productive_node_h: float
    """Training steps that no later attempt had to take again."""
    lost_node_h: dict[str, float]
    """By cause, the largest first; with the productive ones they make the allocated ones."""

    @property
    def share(self) -> float:
        """Productive of allocated, 0 to 1."""
        return self.productive_node_h / self.allocated_node_h if self.allocated_node_h else 0.0


@dataclass(frozen=True)
class _Attempt:
    begin: float
    end: float
    nodes: int
    reason: str | None
    times: AttemptTimes | None


def measure_goodput(
    events: Sequence[AttemptEvent], attempts: Sequence[AttemptTimes], *, now: float
) -> Goodput:
    """Compute it from the starts and ends of the attempts and from rank 0's account of each.

    now: the end of an attempt that still runs, or died without a word; an older one counts for
    nothing.
    """
    joined = _join(events, attempts, now)
    allocated = productive = 0.0
    lost: dict[str, float] = defaultdict(float)
    for index, attempt in enumerate(joined):
        later = [a.times for a in joined[index + 1 :] if a.times is not None]
        repeated = [times.first_step for times in later if times.last_step > times.first_step]
        taken_again_from = min(repeated, default=None)
        node_h = attempt.nodes / 3600
        allocated += (attempt.end - attempt.begin) * node_h
        kept_s, causes = _account(attempt, taken_again_from)
        productive += kept_s * node_h
        for cause, seconds in causes.items():
            lost[cause] += seconds * node_h
    largest_first = dict(sorted(lost.items(), key=lambda item: -item[1]))
    return Goodput(allocated, productive, largest_first)


def _account(attempt: _Attempt, taken_again_from: int | None) -> tuple[float, dict[str, float]]:
    """Seconds of steps that count, and the other seconds by cause."""
    times, why = attempt.times, "" if attempt.reason is None else f": {attempt.reason}"
    if times is None:
        return 0.0, {f"no step before the end{why}": attempt.end - attempt.begin}
    causes = {
        name: times.seconds[phase] for phase, name in _CAUSES.items() if phase in times.seconds
    }
    trained_s = times.seconds.get("training", 0.0)
    steps = times.last_step - times.first_step
    kept = steps if taken_again_from is None else taken_again_from - times.first_step
    kept_s = trained_s * min(max(kept / steps, 0.0), 1.0) if steps > 0 else 0.0
    causes["start-up"] = causes.get("start-up", 0.0) + max(0.0, times.started - attempt.begin)
    if trained_s > kept_s:
        causes[f"steps taken again{why}"] = trained_s - kept_s
    rest = attempt.end - attempt.begin - kept_s - sum(causes.values())
    if rest > 0:
        causes[f"waiting for the end{why}"] = rest
    return kept_s, causes


def _join(
    events: Sequence[AttemptEvent], attempts: Sequence[AttemptTimes], now: float
) -> list[_Attempt]:
    """Recorded attempts with rank 0's account of each; accounts alone where nobody recorded."""
    starts = [event for event in events if event.event == "start"]
    if not starts:
        return [_Attempt(t.started, t.updated, t.nodes, None, t) for t in attempts]
    ends = {event.attempt: event for event in events if event.event == "end"}
    joined = []
    begins = [*(start.time for start in starts[1:]), math.inf]
    accounts = list(attempts)
    for start, following in zip(starts, begins, strict=True):
        end = ends.get(start.attempt)
        until = min(now if end is None else end.time, following - _CLOCKS_S)
        inside = [t for t in accounts if start.time - _CLOCKS_S <= t.started <= until + _CLOCKS_S]
        nearest = min(inside, key=lambda t: abs(t.started - start.time), default=None)
        if nearest is not None:
            accounts.remove(nearest)  # an attempt before that ended too soon has none
        until = max(start.time, now) if end is None else end.time
        reason = None if end is None else end.reason
        joined.append(_Attempt(start.time, until, max(1, len(set(start.hosts))), reason, nearest))
    return joined
