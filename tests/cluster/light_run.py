"""Runs whose ranks need no torch: the supervisor, srun and Slurm are real, the ranks are light."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from supersam.cluster.launcher import submit
from supersam.config import TrainRun
from supersam.health.records import RankHeartbeat, read_heartbeats
from supersam.runs.attempts import AttemptEvent, read_attempts
from tests.cluster import light_rank
from tests.cluster.handle import DevCluster, wait_for
from tests.cluster.tiny_run import TINY, status
from tests.patience import PATIENCE_S

ENDLESS = 1_000_000


class LightRun:
    """A run on a cluster, submitted as by the command; its copy of the code has light ranks."""

    def __init__(
        self,
        cluster: DevCluster,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        watchdog: dict[str, object] | None = None,
        **place: object,
    ) -> None:
        self.cluster, self.folder = cluster, folder
        monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        values = {
            **TINY,
            "run": folder,
            "optim": {**TINY["optim"], "steps": ENDLESS, "global_batch": 8},
            "checkpoint": {**TINY["checkpoint"], "every_steps": 10},
            "watchdog": {"heartbeat_s": 1, "stall_s": 12, **(watchdog or {})},
            "cluster": {"cluster": "slurm", "time": "0:50:00", "signal_delay_s": 60, **place},
        }
        self.run = TrainRun.model_validate(values)
        self._monkeypatch = monkeypatch

    def submit(self) -> int:
        """Submit it. Returns the command's exit code."""
        from supersam.cluster.slurm import submit as module

        copy = module.snapshot_code

        def copy_with_light_ranks(folder: Path) -> Path:
            code = copy(folder)
            shutil.copy(light_rank.__file__, code / "supersam" / "cluster" / "rank.py")
            return code

        with self._monkeypatch.context() as patch:
            patch.setattr(module, "snapshot_code", copy_with_light_ranks)
            return submit(self.run)

    def submit_in_thread(self) -> threading.Thread:
        """Submit it, and follow it where `wait` is set, beside the test."""
        thread = threading.Thread(target=self.submit, daemon=True)
        thread.start()
        return thread

    @property
    def job_id(self) -> str:
        from supersam.cluster.slurm.submit import submitted_job

        job_id = submitted_job(self.folder)
        assert job_id is not None
        return job_id

    def open_gate(self, step: int) -> None:
        """Let the ranks go on up to `step`."""
        partial = self.folder / "gate.partial"
        partial.write_text(str(step))
        partial.rename(self.folder / light_rank.GATE)

    def wait_for_step(self, step: int, *, attempt: int = 1) -> None:
        """Until every rank of the attempt has taken `step` steps."""

        def reached() -> bool:
            beats = [beat for beat in read_heartbeats(self.folder) if beat.attempt == attempt]
            return (
                bool(beats)
                and len(beats) == beats[0].world_size
                and all(beat.step >= step for beat in beats)
            )

        wait_for(reached, PATIENCE_S, what=f"step {step} of attempt {attempt}")

    def heartbeat(self, rank: int) -> RankHeartbeat:
        """The rank's last sign of life."""
        return next(beat for beat in read_heartbeats(self.folder) if beat.rank == rank)

    def signal(self, rank: int, name: str) -> None:
        """Send a signal to a rank, on its own host."""
        beat = self.heartbeat(rank)
        self.cluster.control("shell", beat.host, "--", "kill", f"-{name}", str(beat.pid))

    def events(self, event: str) -> list[AttemptEvent]:
        """The starts or the ends of its attempts."""
        return [e for e in read_attempts(self.folder) if e.event == event]

    def wait_for_event(self, event: str, number: int) -> AttemptEvent:
        """The start or end with that number, once it is recorded."""
        wait_for(lambda: len(self.events(event)) >= number, PATIENCE_S, what=f"{event} {number}")
        return self.events(event)[number - 1]

    def supervisor_log(self) -> str:
        """What its batch steps printed."""
        return "".join(log.read_text() for log in sorted(self.folder.glob("slurm/*.out")))

    def cancel(self, *, attempts: int) -> None:
        """End it as a user does, and wait for the end of its last attempt."""
        done = status(self.folder, "--cancel", env=self.cluster.env)
        assert done.returncode == 0, done.stderr
        assert self.wait_for_event("end", attempts).reason == "cancelled"
