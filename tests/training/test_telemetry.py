"""What a run writes of its steps."""

from __future__ import annotations

import json

import pytest

from supersam.health.heartbeat import Heartbeat
from supersam.runtime.distributed import World
from supersam.runtime.metrics import MetricWriter
from supersam.training.telemetry import Telemetry


def test_the_share_of_clipped_steps_is_written_since_the_last_line(tmp_path):
    place = {"rank": 0, "world_size": 1, "nodes": 1, "interval_s": 10.0, "steps": 9}
    heartbeat = Heartbeat(tmp_path, **place)
    writer = MetricWriter(tmp_path, first_step=0)
    telemetry = Telemetry(
        writer, World.single(), every=4, steps=9, first_step=0, heartbeat=heartbeat
    )
    for step, norm in enumerate([2.0, 0.5, 3.0, 1.5, 0.5, 0.5, 0.5, 9.0], start=1):
        telemetry.end_step(step, learning_rate=0.1, grad_norm=norm, clipped=norm > 1)
    telemetry.close()
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = {line["step"]: line["train/clipped"] for line in lines}
    assert shares == {1: 1.0, 4: pytest.approx(2 / 3), 8: 0.25}
