"""Signs of why a run ended, in the ends of its log files. Reads tails only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supersam.config.files import JOB_FOLDER, LOGS
from supersam.runtime.tail import read_tail

_FILES = 64
_RANK = re.compile(r"(?:task|train)-(\d+)")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)')
_RAISED = re.compile(
    r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?:: (?P<text>.*))?$"
)
_SLURM = (
    (re.compile(r"oom[-_ ]kill", re.IGNORECASE), "out of memory"),
    (re.compile(r"srun: error: .*Out Of Memory"), "out of memory"),
    (re.compile(r"Exceeded .*memory limit"), "out of memory"),
    (re.compile(r"DUE TO TIME LIMIT"), "time limit"),
    (re.compile(r"DUE TO PREEMPTION"), "preempted"),
    (re.compile(r"DUE TO NODE FAILURE|Node failure on \S+"), "node failure"),
)
_HOST = re.compile(r"(?:srun: error: |task \d+ on |Node failure on |StepId=\S+ ON )([\w.-]+)")
_TASK = re.compile(r"task (\d+): Out Of Memory")
_CAUSES = (
    (
        re.compile(
            r"out of memory|OutOfMemory|can't allocate memory|Cannot allocate|MemoryError|"
            r"bad_alloc|Unable to allocate"
        ),
        "out of memory",
    ),
    (
        re.compile(
            r"No space left on device|Disk quota exceeded|File too large|os error 2[78]\b|"
            r"Errno (?:28|27|122)\b"
        ),
        "disk full",
    ),
    (re.compile(r"Read-only file system|Errno 30\b"), "read-only disk"),
)
_ECHOES = re.compile(
    r"onnection (?:closed|reset|refused)|another rank failed|Broken pipe|DistBackendError|"
    r"DistNetworkError|gloo|NCCL|ProcessGroup|Timed out waiting|Socket",
)


@dataclass(frozen=True)
class Finding:
    """A sign of why a run ended, in a log file."""

    cause: str | None
    """out of memory, disk full, time limit, preempted, node failure, mistake; None: another."""
    text: str
    """The line or exception."""
    file: Path
    time: float
    """When the file was last written."""
    rank: int | None = None
    host: str | None = None
    where: str = ""
    """File and line of an exception."""


def cause_of(text: str) -> str | None:
    """Name the failure that an exception shows: out of memory, disk full, read-only disk."""
    return next((cause for pattern, cause in _CAUSES if pattern.search(text)), None)


def is_echo(text: str) -> bool:
    """Whether an exception only says that another rank is gone."""
    return _ECHOES.search(text) is not None


def find_signs(folder: Path, *, since: float) -> list[Finding]:
    """Signs in the log files of `folder` written since a time (Unix seconds), newest file first."""
    return [sign for path in _newest(folder, since) for sign in _signs(path)]


def log_rank(path: Path) -> int | None:
    """The rank that a log file belongs to, by its name."""
    found = _RANK.search(path.name)
    return None if found is None else int(found.group(1))


def _newest(folder: Path, since: float) -> list[Path]:
    dated = []
    for path in (*(folder / LOGS).rglob("*"), *(folder / JOB_FOLDER).glob("*")):
        if path.suffix in (".log", ".out", ".err") and path.is_file():
            dated.append((path.stat().st_mtime, path))
    return [path for when, path in sorted(dated, reverse=True)[:_FILES] if when >= since]


def _signs(path: Path) -> Iterator[Finding]:
    lines = read_tail(path).splitlines()
    rank, when = log_rank(path), path.stat().st_mtime
    for line in lines:
        cause = next((cause for pattern, cause in _SLURM if pattern.search(line)), None)
        if cause is not None:
            host, task = _HOST.search(line), _TASK.search(line)
            named = int(task.group(1)) if task else None
            yield Finding(
                cause, line.strip(), path, when, rank=named, host=host.group(1) if host else None
            )
        elif line.startswith("error: "):
            yield Finding("mistake", line.removeprefix("error: "), path, when, rank=rank)
    raised = _last_exception(lines)
    if raised is not None:
        text, where = raised
        yield Finding(cause_of(text), text, path, when, rank=rank, where=where)


def _last_exception(lines: list[str]) -> tuple[str, str] | None:
    """Text and place of the last traceback: the place in this software, else the innermost."""
    for index in range(len(lines) - 1, -1, -1):
        match = _RAISED.match(lines[index])
        if match is None:
            continue
        frames = []
        for line in reversed(lines[:index]):
            if line.startswith("Traceback"):
                break
            if frame := _FRAME.match(line):
                frames.append(f"{frame['file']}:{frame['line']}")
        if frames:
            return lines[index], next((f for f in frames if "/supersam/" in f), frames[0])
    return None
