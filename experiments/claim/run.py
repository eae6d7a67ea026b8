"""Runs the stages one after the other, each once; a stopped experiment goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from experiments.claim.stages import Plan, Stage
from supersam.runtime.atomic import write_json
from supersam.runtime.process import end_with_parent

ROOT = Path(__file__).parents[2]


def has_ended(plan: Plan, stage: str) -> bool:
    """Whether the stage of this name has ended well, in this start or an earlier one."""
    return _record(plan, stage).is_file()


def perform(plan: Plan, stage: Stage) -> bool:
    """Run the stage's command. Returns whether it has ended well.

    Its output goes to `logs/`, its wall and CPU seconds to `stages/`.
    """
    record = _record(plan, stage.name)
    words = [*stage.words()]
    log = plan.out / "logs" / f"{_file_name(stage.name)}.log"
    for place in (log, record, _partial(plan, stage.name)):
        place.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "launch" / f"{stage.command}.py"), *words]
    began = time.monotonic()
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    cost = {"wall_s": time.monotonic() - began, "cpu_s": used.ru_utime + used.ru_stime}
    earlier = _earlier(plan, stage.name)
    cost = {name: round(seconds + earlier.get(name, 0.0), 1) for name, seconds in cost.items()}
    if code != 0:
        write_json(_partial(plan, stage.name), cost)
        print(f"{stage.name} ended with {code}; see {log}", file=sys.stderr, flush=True)
        return False
    write_json(record, {"stage": stage.name, "arm": stage.arm, **cost})
    return True


def stage_costs(plan: Plan) -> list[dict[str, object]]:
    """What each stage that has ended took: its name, arm, wall and CPU seconds."""
    files = sorted((plan.out / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def _record(plan: Plan, name: str) -> Path:
    return plan.out / "stages" / f"{_file_name(name)}.json"


def _partial(plan: Plan, name: str) -> Path:
    return plan.out / "stages" / "unfinished" / f"{_file_name(name)}.json"


def _earlier(plan: Plan, name: str) -> dict[str, float]:
    """What starts of the stage took that did not end well."""
    path = _partial(plan, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _file_name(stage: str) -> str:
    return stage.replace(" ", "-")
