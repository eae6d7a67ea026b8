"""Curves over restarts: each step once."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from supersam.runtime.metrics import MetricWriter


def write(folder, *, first_step, steps):
    writer = MetricWriter(folder, first_step=first_step)
    for step in steps:
        writer.scalars({"train/loss": 1 / step}, step)
    writer.close()


def curve(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("saved", [0, 4, 6])
def test_a_restarted_curve_has_each_step_once(tmp_path, saved):
    write(tmp_path, first_step=0, steps=range(1, 7))
    write(tmp_path, first_step=saved, steps=range(saved + 1, 9))
    assert curve(tmp_path) == list(range(1, 9))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == list(range(1, 9))
