"""`python launch/train.py` as a user types it: what it leaves on disk, prints and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from supersam.config import SourceConfig, SyntheticConfig, TrainRun, load_run
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.runs.attempts import read_attempts
from supersam.runs.checkpoint_io import CheckpointManager
from supersam.runtime.distributed import World
from tests import commands
from tests.next_commands import read_next
from tests.paths import ROOT
from tests.patience import PATIENCE_S
from tests.training.runs import TINY_RUN

pytestmark = pytest.mark.slow

STEPS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    values = {
        **TINY_RUN,
        "data": {
            **TINY_RUN["data"],
            "source": "synthetic",
            "synthetic_train": {"images": 8, "size_px": 64},
            "synthetic_val": {"images": 3, "size_px": 64, "seed": 1},
        },
        "optim": {**TINY_RUN["optim"], "steps": STEPS},
        "checkpoint": {"every_steps": 100, "validate_every_steps": 100, "overlay_images": 2},
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "launch/train.py", *map(str, words)]


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    return commands.launch("train", *words)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The folder of a finished run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    done = launch("--config", config, "--run", folder)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: trained to step {STEPS}\ncurves: " in done.stdout
    name, following = read_next(done.stdout)
    assert (name, following.run) == ("search", folder)
    return folder


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(line["step"], {}).update(line)
    return found


def test_the_run_folder_holds_what_is_promised(finished):
    run = load_run(TrainRun, finished / "run.yaml")
    assert run.optim.steps == STEPS
    assert (finished / "space.yaml").is_file()
    found = CheckpointManager(finished, run.checkpoint, World.single()).latest()
    assert found is not None
    path, manifest = found
    assert (path.name, manifest.state.step) == (f"step-{STEPS:06d}", STEPS)
    assert list(metrics(finished)) == list(range(1, STEPS + 1))
    assert any((finished / "logs").iterdir())
    assert not [path for path in finished.rglob("*") if ".tmp" in path.name]


def test_tensorboard_holds_the_promised_curves_pictures_and_texts(finished):
    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    promised = {f"train/loss/{slot}" for slot in ("largest", "random_0", "smallest")}
    promised |= {"train/lr", "train/grad_norm", "perf/images_per_s", "perf/data_wait_s"}
    promised |= {"perf/memory_gib"}
    promised |= {f"val/miou/{name}" for name in ("largest", "medium", "smallest")}
    assert promised <= set(tags["scalars"])
    assert len(board.Scalars("train/loss/largest")) == STEPS
    assert [event.step for event in board.Scalars("val/miou/smallest")] == [STEPS]
    assert any(tag.startswith("val/masks") for tag in tags["images"])
    assert any(tag.startswith("run") for tag in tags["tensors"])
    assert (
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    )
    assert [path for path in (finished / "tensorboard").iterdir() if path.is_dir()] == []


def test_training_lowers_the_loss(finished):
    values = [line["train/loss/largest"] for line in metrics(finished).values()]
    assert sum(values[-5:]) < sum(values[:5])


def test_a_finished_run_says_so_and_changes_nothing(config, finished):
    before = metrics(finished)
    done = launch("--run", finished)
    assert done.returncode == 0
    assert "complete" in done.stderr
    assert metrics(finished) == before


def test_ctrl_c_saves_two_ranks_and_one_goes_on_with_the_same_losses(config, finished):
    # At a higher rate Adam turns the rounding of near-zero gradients into whole steps, and any
    # two worlds drift apart.
    flags = ("--config", config, "--optim.lr", "2e-5", "--run")
    alone, folder = finished.parent / "unbroken", finished.parent / "interrupted"
    assert launch(*flags, alone).returncode == 0
    process = subprocess.Popen(
        command(*flags, folder, "--tasks-per-node", 2),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the launcher and its ranks at once
    )
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.count("stopping after this step; Ctrl-C again to quit now") == 1
    stopped = max(metrics(folder))
    assert stopped < STEPS
    done = launch("--run", folder, "--tasks-per-node", 1)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {stopped}" in done.stderr
    expected, found = metrics(alone), metrics(folder)
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        for name in (n for n in values if n.startswith("train/loss")):
            assert found[step][name] == pytest.approx(values[name], rel=1e-5), (step, name)


def test_sets_mixed_by_weight_are_seen_in_those_shares(config, tmp_path):
    folders = [tmp_path / "set0", tmp_path / "set1"]
    for seed, folder in enumerate(folders):
        synthetic = SyntheticConfig(images=8, size_px=64, seed=seed + 5)
        convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder, workers=1)
    known = [{reader.read_image(i).id for i in range(8)} for reader in map(ShardReader, folders)]
    words = ["--data.source", "shards", "--data.train", *folders, "--data.val", folders[1]]
    done = launch(
        "--config", config, "--run", tmp_path / "run", "--optim.steps", 8, *words,
        "--data.train-weights", 3, 1, "--tasks-per-node", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [p.read_text() for p in (tmp_path / "run/logs").glob("sample_ids-*.jsonl")]
    seen = [i for text in logs for line in text.splitlines() for i in json.loads(line)["ids"]]
    assert len(logs) == 2
    assert [sum(i in ids for i in seen) for ids in known] == [24, 8]  # of 8 steps of 4 images


def test_ranks_of_torchrun_are_one_run_that_knows_how_many_they_are(config, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words = command("--config", config, "--run", tmp_path / "run", "--optim.steps", 1)[1:]
    done = subprocess.run(
        [*torchrun, "--", *words],  # else torchrun takes --run for an option of its own
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    start, end = read_attempts(tmp_path / "run")
    assert (start.world_size, len(start.hosts)) == (2, 2)
    assert (end.reason, end.step) == ("finished", 1)
    logs = [p.read_text() for p in (tmp_path / "run/logs").glob("sample_ids-*.jsonl")]
    assert len(logs) == 2


def test_a_reader_that_leaves_ends_a_dry_run_without_a_word(config, tmp_path):
    process = subprocess.Popen(
        command("--config", config, "--run", tmp_path / "run", "--dry-run"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (-signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--optim.lr", "-1"], "greater than 0"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--model.name", "vit_x"], "vit_t, vit_s, vit_b, vit_l, vit_h"),
        (["--data.source", "shards", "--data.train", "absent"], "absent"),
    ],
)
def test_mistakes_end_in_one_message_and_code_2(tmp_path, words, expected):
    done = launch("--run", tmp_path / "run", *words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
