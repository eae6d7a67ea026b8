"""Curves over restarts: each step once."""

import json
import resource
import shutil
import threading
import time

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


def write_texts(writer):
    for _ in range(100):
        writer.text("notes", "word " * 10_000)
        time.sleep(0.01)


def test_a_full_disk_is_told_to_the_writer_and_not_printed_by_a_thread(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    writer = MetricWriter(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_texts(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert printed == []


def test_a_folder_that_is_deleted_is_told_to_the_writer_and_not_printed_by_a_thread(
    tmp_path, monkeypatch
):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    writer = MetricWriter(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        write_texts(writer)
    assert printed == []
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert [args.exc_type for args in printed] == [ZeroDivisionError]
