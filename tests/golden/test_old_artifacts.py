"""Shards, runs, searches, designs and exports of version 0.1.0 are read, and go on."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from supersam.space import EncoderShape, read_space
from tests import commands
from tests.golden.make import DESIGN, SEARCH, masks, written_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GOLDEN = Path(__file__).parent
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
SAME_MACHINE = EXPECTED["written_by"] == written_by()
"""Whether numbers must be equal to the last bit."""


@pytest.fixture
def unpack(tmp_path, monkeypatch):
    """Unpacks samples into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def unpack_here(*names: str) -> None:
        for name in names:
            with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
                archive.extractall(filter="data")

    return unpack_here


def launch(command: str, *words: str) -> str:
    """What a command prints on stdout."""
    done = commands.launch(command, *words, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_losses(run: Path) -> dict[str, float]:
    """The losses of a run, by step and subnet."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        f"{line['step']}/{name}": value
        for line in lines
        for name, value in line.items()
        if name.startswith("train/loss/")
    }


def assert_same_numbers(found: Any, expected: Any, *, tolerance: float) -> None:
    """Equal on the machine that wrote `expected`; within `tolerance` on another one."""
    found, expected = flatten(found), flatten(expected)
    assert found == (expected if SAME_MACHINE else pytest.approx(expected, abs=tolerance))


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary of paths."""
    if isinstance(values, dict):
        children = values.items()
    elif isinstance(values, list):
        children = enumerate(values)
    else:
        return {path: values}
    return {k: v for name, child in children for k, v in flatten(child, f"{path}/{name}").items()}


def test_shards_are_as_they_were_written(unpack):
    unpack("shards")
    said = launch("shard", "--verify", "shards/train", "--full")
    assert "12 images: all as written (every byte read)" in said


def test_status_shows_a_finished_run_its_search_and_an_interrupted_one(unpack):
    unpack("run", "interrupted")
    run = json.loads(launch("status", "run", "--json"))
    assert (run["state"], run["step"], run["steps"]) == ("finished", 30, 30)
    assert run["checkpoints"] == ["step-000007", "step-000030"]
    assert [attempt["reason"] for attempt in run["attempts"]] == [
        None, "signal INT", None, "finished",
    ]  # fmt: skip
    search = json.loads(launch("status", "run/results/search", "--json"))
    assert (search["state"], search["trials"], search["front"]) == ("finished", 8, 5)
    assert search["best_miou"] == pytest.approx(0.0354, abs=1e-4)
    assert "step 7" in launch("status", "interrupted/run", "--why")


def test_an_evaluation_gives_the_numbers_of_then(unpack):
    unpack("shards", "run")
    found = json.loads(launch("evaluate", "--run", "run", "--device", "cpu", "--json"))
    of_then = {
        prompt: {name: found["prompts"][prompt][name] for name in numbers}
        for prompt, numbers in EXPECTED["evaluation"].items()
    }
    assert_same_numbers(of_then, EXPECTED["evaluation"], tolerance=2e-2)


def test_an_interrupted_training_goes_on_with_the_losses_of_then(unpack):
    unpack("shards", "interrupted", "start")
    before = read_losses(Path("interrupted/run"))
    assert max(int(name.partition("/")[0]) for name in before) == 7
    Path("interrupted/run").rename("run")
    launch("train", "--run", "run")
    found = read_losses(Path("run"))
    assert {name.partition("/")[0] for name in found} == {str(step) for step in range(1, 31)}
    assert_same_numbers(found, EXPECTED["losses"], tolerance=2e-2)


def test_a_search_goes_on_and_evaluates_no_subnet_twice(unpack):
    unpack("shards", "run", "start")
    path = Path("run/results/search/journal.jsonl")
    before = path.read_bytes()
    said = json.loads(launch("search", "--run", "run", *SEARCH, "--trials", "12", "--json"))
    assert said["finished"]
    assert said["num_trials"] == 12
    assert path.read_bytes().startswith(before)
    trials = [json.loads(line)["trial"] for line in path.read_text().splitlines()]
    searched = [json.dumps(trial["spec"]) for trial in trials if trial["stage"] == "search"]
    assert len(searched) == len(set(searched))
    assert len({trial["key"] for trial in trials}) == len(trials)
    references = [trial["searcher"] for trial in trials if trial["stage"] == "reference"]
    assert sorted(references) == ["largest", "pretrained", "smallest"]


def test_an_export_gives_the_masks_of_then(unpack):
    unpack("export")
    found, expected = (
        np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
        for text in (masks(Path("export")), EXPECTED["masks"])
    )
    assert 0.1 < expected.mean() < 0.9
    assert (found != expected).mean() <= (0.0 if SAME_MACHINE else 0.01)


def test_a_designed_space_is_read_and_trained_from(unpack):
    unpack("shards", "design", "start")
    written = yaml.safe_load(Path("design/space.yaml").read_text())
    space = read_space(Path("design/space.yaml"), EncoderShape(32, 4, 2, (1, 3), 64, 2))
    assert [list(widths) for widths in space.mlp_widths] == written["mlp_widths"]
    given = ("--config", "design/space-design/train.yaml", "--data.train", "shards/train")
    assert "weights.safetensors" in launch("train", *given, "--run", "new", "--dry-run")


def test_a_design_goes_on_and_measures_nothing_again(unpack):
    unpack("shards", "design", "start")
    written = Path("design/space.yaml").read_text()
    launch("design", *DESIGN)
    evidence = json.loads(Path("design/space-design/evidence.json").read_text())
    assert evidence["sets_measured"] == 0
    assert Path("design/space.yaml").read_text() == written
