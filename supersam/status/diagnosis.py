"""One line that says what happened to a run."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from supersam.config.files import LOGS
from supersam.health.records import Fault, RankHeartbeat
from supersam.runtime.table import count, duration
from supersam.status.logs import Finding, cause_of, find_signs, is_echo
from supersam.status.run import RunRecord

_LEAST_BYTES = 4096
_BY_SLURM = ("node failure", "time limit", "preempted", "preempted without notice")
_TIGHT_GIB = 0.5
_TIMES = ("never", "once", "twice")
_WORDS = 300


@dataclass(frozen=True)
class Why:
    """What happened, for people and for machines."""

    kind: str
    """The state, or for a failure its cause: out of memory, disk full, mistake, exception, ..."""
    text: str
    """One line."""


def explain(record: RunRecord) -> Why:
    """What happened to the run, by its files and by Slurm."""
    state = record.state
    if state == "running":
        suspended = record.job is not None and record.job.state == "SUSPENDED"
        word = "suspended by Slurm" if suspended else "running"
        return Why(state, f"{word}: {progress(record)}{_history(record)}")
    if state == "finished":
        score = "" if record.status is None else _score(record.status.miou)
        return Why(state, f"finished: {record.step} steps{score}{_history(record)}")
    if state == "pending" and record.job is not None:
        return Why(state, record.job.queue_words + _history(record))
    if state in ("cancelled", "stopped"):
        return Why(state, f"{_how_stopped(record)} at step {record.step}{_kept(record)}")
    if state == "stuck" and record.hang is not None:
        return Why(state, f"stuck: {record.hang.reason}{_history(record)}")
    if state == "new":
        return _refused(record) or Why(state, _never_began(record))
    failure = _failure(record)
    if failure.kind == "unknown" and record.could_be_alive:
        failure = Why("unknown", _silent_job(record))
    return Why(failure.kind, _one_line(failure.text) + _saved(record) + _history(record))


def _how_stopped(record: RunRecord) -> str:
    if record.state == "cancelled":
        return "cancelled"
    faults = [beat.fault for beat in record.heartbeats if beat.fault is not None]
    at_once = any(fault.kind == KeyboardInterrupt.__name__ for fault in faults)
    return "stopped at once by a second Ctrl-C" if at_once else "stopped on request"


def _silent_job(record: RunRecord) -> str:
    """What is known of a run whose job Slurm does not, or no longer, describe."""
    seen = max((beat.time for beat in record.heartbeats), default=None)
    if seen is None:
        return f"Slurm says nothing of job {record.job_id}, and no rank has given a sign of life"
    silent = duration(max(0.0, time.time() - seen))
    return f"Slurm says nothing of job {record.job_id}; the last sign of life is {silent} old"


def _kept(record: RunRecord) -> str:
    lost = record.step - record.saved_step
    again = f", {count(lost, 'step')} will be taken again" if lost > 0 else ""
    return f"; saved at step {record.saved_step}{again}"


def progress(record: RunRecord) -> str:
    """Step, share and time left."""
    if record.status is None:
        return "starting"
    share = f" ({100 * record.step / record.steps:.0f} %)" if record.steps else ""
    eta = record.status.eta_s
    left = f", {duration(eta)} left" if eta is not None else ""
    return f"step {record.step} of {record.steps}{share}{left}, {record.status.phase}"


def _failure(record: RunRecord) -> Why:
    """The first cause that is certain: an exception of its own, Slurm's word, a dead rank."""
    if record.lost_requeue:
        return Why("killed", _lost_requeue(record))
    told = sorted((b for b in record.heartbeats if b.fault is not None), key=lambda beat: beat.time)
    causes = [b for b in told if b.fault is not None and not is_echo(b.fault.message)]
    if causes and causes[0].fault is not None:
        return _explain_fault(causes[0], causes[0].fault)
    signs = find_signs(record.folder, since=_last_start(record))
    if shutil.disk_usage(record.folder).free < _LEAST_BYTES:  # then no rank could write its word
        return Why("disk full", f"disk full on {record.folder}: no byte is left")
    slurm = _explain_job(record, signs)
    if slurm is not None:
        return slurm
    own = [sign for sign in signs if not is_echo(sign.text)]
    disk = next((sign for sign in own if sign.cause in ("disk full", "read-only disk")), None)
    if disk is not None:  # then ranks could not write why they ended
        return _explain_sign(disk)
    if record.status is not None and record.status.phase == "stopped":
        return Why("killed", _lost_supervisor(record))
    vanished = [b for b in record.heartbeats if not b.has_ended and not record.works(b)]
    if vanished:
        return _explain_vanished(record, min(vanished, key=lambda beat: beat.time))
    exceptions = own or signs
    if exceptions:
        return _explain_sign(exceptions[0])
    if told and told[0].fault is not None:
        return _explain_fault(told[0], told[0].fault)
    return Why("unknown", f"ended at step {record.step}, and nothing says why; see {_logs(record)}")


def _lost_supervisor(record: RunRecord) -> str:
    """Describe an end that the ranks were told of, and the batch step did not record."""
    said = "" if record.job is None else f"; Slurm says {record.job.state} of job {record.job_id}"
    ranks = f"its ranks were told to save and ended at step {record.step}"
    return f"the job's batch step was killed; {ranks}{said}"


def _lost_requeue(record: RunRecord) -> str:
    """Describe a job that its batch step was about to requeue when it was killed."""
    state = "ended" if record.job is None else record.job.state
    return (
        f"{record.events[-1].reason} at step {record.step}, and the batch step was killed before "
        f"it had requeued job {record.job_id} (Slurm says {state}): no node is held, and the same "
        "command goes on"
    )


def _explain_fault(beat: RankHeartbeat, fault: Fault) -> Why:
    place = f"rank {beat.rank} host {beat.host}"
    first = _first_line(fault.message)
    cause = cause_of(f"{fault.kind}: {fault.message}")
    at = f" at {_short(fault.where)}" if fault.where else ""
    if fault.kind == "UserError":
        return Why("mistake", f"mistake: {fault.message}")
    if cause is not None:
        use = f", {beat.memory_gib:.1f} GiB in use" if cause == "out of memory" else ""
        return Why(cause, f"{cause} on {place}{use}: {fault.kind}: {first}{at}")
    return Why("exception", f"exception on {place}: {fault.kind}: {first}{at}")


def _explain_job(record: RunRecord, signs: list[Finding]) -> Why | None:
    """What Slurm did to the job, by its log lines, its state or the recorded end."""
    if (said := _explain_slurm_line(signs, "out of memory")) is not None:
        return said
    states = {"OUT_OF_MEMORY": "out of memory", "NODE_FAIL": "node failure"}
    states |= {"TIMEOUT": "time limit", "PREEMPTED": "preempted", "DEADLINE": "time limit"}
    if record.job is not None and record.job.state in states:
        cause = states[record.job.state]
        nodes = f" on {record.job.nodes}" if record.job.nodes else ""
        return Why(cause, f"{cause}{nodes}: Slurm says {record.job.state} of job {record.job_id}")
    last = record.events[-1] if record.events else None
    if last is not None and last.reason in _BY_SLURM:
        return Why(last.reason, f"{last.reason} at step {record.step} of job {last.job_id}")
    causes = ("node failure", "time limit", "preempted")
    return next((w for cause in causes if (w := _explain_slurm_line(signs, cause))), None)


def _explain_slurm_line(signs: list[Finding], cause: str) -> Why | None:
    found = next((s for s in signs if s.cause == cause and not s.where), None)
    if found is None:
        return None
    rank = f" rank {found.rank}" if found.rank is not None else ""
    host = f" host {found.host}" if found.host is not None else ""
    on = f" on{rank}{host}" if rank or host else ""
    return Why(cause, f"{cause}{on}: {found.text}")


def _explain_vanished(record: RunRecord, beat: RankHeartbeat) -> Why:
    place = f"rank {beat.rank} host {beat.host}"
    on_host = [b for b in record.heartbeats if b.host == beat.host]
    silent = [b for b in on_host if not b.has_ended]
    if len(on_host) > 1 and silent == on_host and len(on_host) < len(record.heartbeats):
        return Why("killed", f"host {beat.host} with all its ranks vanished at step {beat.step}")
    if beat.host_free_gib < _TIGHT_GIB:
        left = f"the host had {beat.host_free_gib:.1f} GiB left"
        used = f"{beat.memory_gib:.1f} GiB in use"
        return Why("out of memory", f"out of memory on {place}, probably: killed, {used}, {left}")
    text = f"{place} was killed at step {beat.step} ({beat.phase}) and left no word"
    return Why("killed", f"{text}; {beat.memory_gib:.1f} GiB in use, {beat.host_free_gib:.1f} free")


def _explain_sign(sign: Finding) -> Why:
    rank = "" if sign.rank is None else f" on rank {sign.rank}"
    at = f" at {_short(sign.where)}" if sign.where else ""
    kind = sign.cause or "exception"
    return Why(kind, f"{kind}{rank}: {sign.text}{at} ({sign.file.name})")


def _history(record: RunRecord) -> str:
    """What earlier attempts went through: preempted twice and resumed at step 420."""
    ends = [event for event in record.events if event.event == "end"]
    starts = [event for event in record.events if event.event == "start"]
    before = ends[: len(starts) - 1] if record.state != "pending" else ends
    counts = Counter(event.reason or "ended" for event in before)
    if not counts:
        return ""
    said = [f"{'stopped by ' if 'signal' in r else ''}{r} {_times(n)}" for r, n in counts.items()]
    step = starts[-1].step if record.state != "pending" else record.saved_step
    verb = "resumed" if step > 0 else "started anew"
    if record.state == "pending":
        verb = "resumes" if step > 0 else "starts anew"
    return f"; {', '.join(said)} and {verb} at step {step}"


def _times(count: int) -> str:
    return _TIMES[count] if count < len(_TIMES) else f"{count} times"


def _saved(record: RunRecord) -> str:
    return f"; saved at step {record.saved_step}" if record.saved_step else "; nothing was saved"


def _score(miou: float | None) -> str:
    return "" if miou is None else f", mIoU {miou:.3f}"


def _refused(record: RunRecord) -> Why | None:
    """The mistake for which the supervisor did not even start the ranks."""
    if record.job_id is None:
        return None
    signs = find_signs(record.folder, since=0)
    return next((_explain_sign(sign) for sign in signs if sign.cause == "mistake"), None)


def _never_began(record: RunRecord) -> str:
    if record.job_id is None:
        return "never began"
    known = "" if record.job is None else f" (Slurm says {record.job.state})"
    return f"job {record.job_id} never began{known}"


def _last_start(record: RunRecord) -> float:
    times = [event.time for event in record.events if event.event == "start"]
    return times[-1] - 1 if times else 0.0


def _logs(record: RunRecord) -> Path:
    return record.folder / LOGS


def _short(where: str) -> str:
    """A place in this software without the folders above it."""
    parts = Path(where).parts
    if "supersam" in parts:
        last = len(parts) - 1 - parts[::-1].index("supersam")
        return str(Path(*parts[last:]))
    return where


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _WORDS else f"{joined[:_WORDS]} ..."
