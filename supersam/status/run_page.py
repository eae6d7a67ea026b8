"""A run, as it is shown, and its log as it grows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supersam.cluster.slurm.jobs import JobQueue
from supersam.config.files import CHECKPOINTS, LOGS
from supersam.health.bad_hosts import count_host_hangs
from supersam.health.records import RankHeartbeat
from supersam.runtime.table import ago, count, duration, number
from supersam.runtime.tail import LogTail
from supersam.status.cancel import cancel
from supersam.status.diagnosis import Why, explain, progress
from supersam.status.goodput import Goodput, measure_goodput
from supersam.status.logs import log_rank
from supersam.status.page import Page
from supersam.status.run import RunRecord, read_record

_STRAGGLES = 1.3
_POLL_S = 1.0
_QUEUE_EVERY = 15  # polls of the log for each question to Slurm
_FOLLOWED_BYTES = 4096


class RunPage(Page[RunRecord]):
    """A run, as it is shown."""

    noun = "run"
    columns = ("RUN", "STATE", "STEP", "OF", "IMAGES/S", "LEFT", "MIOU", "TRY", "JOB", "SEEN")

    def why(self) -> Why:
        """What happened to it, by its files and by Slurm."""
        return explain(self.record)

    def row(self, root: Path) -> tuple[str, ...]:
        """Its line of the table; `root` holds its folder."""
        record, status = self.record, self.record.status
        eta = status.eta_s if status is not None and record.state == "running" else None
        return (
            record.folder.name,
            record.state,
            str(record.step),
            str(record.steps),
            number(status.images_per_s if status is not None else None, ".1f"),
            "-" if eta is None else duration(eta),
            number(status.miou if status is not None else None, ".3f"),
            str(record.attempt or "-"),
            record.job_id or "-",
            ago(record.seen),
        )

    def summary(self) -> dict[str, Any]:
        """What the table says."""
        record, status = self.record, self.record.status
        return {
            "run": str(record.folder),
            "state": record.state,
            "step": record.step,
            "steps": record.steps,
            "images_per_s": None if status is None else status.images_per_s,
            "eta_s": None if status is None else status.eta_s,
            "miou": None if status is None else status.miou,
            "attempt": record.attempt,
            "job_id": record.job_id,
            "checkpoint": record.saved_step or None,
            "seen": record.seen,
        }

    def detail(self) -> dict[str, Any]:
        """What the page says, and each rank and attempt."""
        record, goodput = self.record, _goodput(self.record)
        return {
            **self.summary(),
            "why": asdict(self.why()),
            "job": None if record.job is None else asdict(record.job),
            "losses": {} if record.status is None else record.status.losses,
            "ranks": [asdict(beat) for beat in record.heartbeats],
            "stragglers": [beat.rank for beat in find_stragglers(record.heartbeats)],
            "attempts": [asdict(event) for event in record.events],
            "goodput": {**asdict(goodput), "share": goodput.share},
            "checkpoints": [path.name for path in _checkpoints(record.folder)],
            "strikes": dict(count_host_hangs(record.folder)),
        }

    def lines(self) -> list[str]:
        """A line for each thing that there is something to say of."""
        record, status = self.record, self.record.status
        lines = []
        if status is not None:
            lines.append(f"progress     {progress(record)}")
            losses = [f"{slot} {number(value, '.3f')}" for slot, value in status.losses.items()]
            rate = number(status.images_per_s, ".1f")
            lines.append(f"throughput   {rate} images/s; loss: {', '.join(losses) or '-'}")
            lines.append(f"mIoU         {number(status.miou, '.3f')}")
        saved = [path.name for path in _checkpoints(record.folder)]
        lines.append(f"checkpoints  {' '.join(saved) or 'none'}")
        if record.job_words is not None:
            lines.append(f"job          {record.job_words}")
        lines += _rank_lines(record)
        lines += [f"attempt {text}" for text in _attempt_lines(record)]
        lines += _goodput_lines(_goodput(record))
        hangs = count_host_hangs(record.folder)
        if hangs:
            named = ", ".join(f"{host} {count}" for host, count in hangs.most_common())
            lines.append(f"hung hosts   {named}")
        return lines

    def cancel(self) -> str:
        """Ask it to save and end; end it at once where it was asked before."""
        return cancel(self.record)

    def follow(self, rank: int, queue: JobQueue) -> None:
        """Print the rank's newest log file as it grows, until the run ends."""
        _follow(self.record, rank, queue)


def _rank_lines(record: RunRecord) -> list[str]:
    if not record.heartbeats:
        return []
    hosts = len({beat.host for beat in record.heartbeats})
    oldest = min(record.heartbeats, key=lambda beat: beat.time)
    age = duration(max(0.0, time.time() - oldest.time))
    lines = [
        f"ranks        {len(record.heartbeats)} on {count(hosts, 'host')}; oldest sign of life "
        f"{age} ago"
    ]
    for beat in find_stragglers(record.heartbeats):
        work = number(beat.median_work_s, ".2f")
        lines.append(f"straggler    rank {beat.rank} on {beat.host}: {work} s of own work a step")
    return lines


def find_stragglers(beats: Sequence[RankHeartbeat]) -> list[RankHeartbeat]:
    """Ranks whose own part of a step takes 1.3 times as long as the median rank's, or longer."""
    known = sorted(beat.median_work_s for beat in beats if beat.median_work_s is not None)
    if len(known) < 2:
        return []
    usual = known[(len(known) - 1) // 2]
    return [b for b in beats if (b.median_work_s or 0.0) >= _STRAGGLES * usual > 0]


def _attempt_lines(record: RunRecord) -> list[str]:
    ends = {event.attempt: event for event in record.events if event.event == "end"}
    lines = []
    for start in (event for event in record.events if event.event == "start"):
        end = ends.get(start.attempt)
        until, how = time.time(), "still open"
        if end is not None:
            until, how = end.time, f"{end.reason}, saved at step {end.step}"
        elif record.open_end is not None:
            until = max(start.time, record.seen or 0.0)
            how = f"{record.open_end}, saved at step {record.saved_step}"
        where = f"{count(start.world_size, 'rank')} on {count(len(set(start.hosts)), 'host')}"
        lasted = duration(until - start.time)
        lines.append(f"{start.attempt:<4} from step {start.step}, {where}, {lasted}: {how}")
    return lines


def _goodput_lines(goodput: Goodput) -> list[str]:
    if goodput.allocated_node_h == 0:
        return []
    total, share = goodput.allocated_node_h, 100 * goodput.share
    lines = [f"goodput      {share:.0f} % of {total:.3g} node-hours were steps that count"]
    return lines + [
        f"  lost       {hours:.3g} {cause}" for cause, hours in goodput.lost_node_h.items()
    ]


def _goodput(record: RunRecord) -> Goodput:
    attempts = [] if record.status is None else record.status.attempts
    now = time.time() if record.state == "running" else (record.seen or time.time())
    return measure_goodput(record.events, attempts, now=now)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / CHECKPOINTS).glob("step-*"), key=lambda path: int(path.name[5:]))


def _follow(record: RunRecord, rank: int, queue: JobQueue) -> None:
    """Print the rank's newest log file as it grows; a newer file takes over. Ends with the run."""
    folder = record.folder
    tail: LogTail | None = None
    polls = 0
    while True:
        newest = _newest_log(folder, rank)
        if newest is not None and (tail is None or newest != tail.path):
            tail = LogTail(newest, skip=tail is None, last_bytes=_FOLLOWED_BYTES)
            print(f"== {newest}", file=sys.stderr)
        if tail is not None:
            tail.print_new()
        if record.state not in ("running", "pending", "new"):
            break
        time.sleep(_POLL_S)
        polls += 1
        if polls % _QUEUE_EVERY == 0 or record.job is None:
            record = read_record(folder, queue)
    print(explain(record).text, file=sys.stderr)


def _newest_log(folder: Path, rank: int) -> Path | None:
    named = [p for p in (folder / LOGS).rglob("*.log") if log_rank(p) == rank]
    return max(named, key=lambda path: (path.stat().st_mtime, path.name), default=None)
