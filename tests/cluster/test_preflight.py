from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supersam.cluster.launcher import submit
from supersam.cluster.preflight import (
    check_memory,
    check_partition,
    check_run,
    describe_batch,
    describe_ranked_run,
)
from supersam.config import TrainCluster, TrainRun
from supersam.model import load_sam
from supersam.runs.folder import prepare_run_folder
from supersam.space import EncoderShape
from tests.training.runs import tiny_run

BATCH = {
    **{"PartitionName": "batch", "Default": "YES", "MaxTime": "1-00:00:00", "TotalNodes": "8"},
    **{"PreemptMode": "REQUEUE", "GraceTime": "20", "DefaultTime": "NONE"},
}
URGENT = BATCH | {"PartitionName": "urgent", "Default": "NO", "MaxTime": "UNLIMITED"}
SMALL = URGENT | {"PartitionName": "small", "TotalNodes": "2"}


def faults(**cluster: object) -> list[str]:
    findings = check_partition(TrainCluster.model_validate(cluster), [SMALL, BATCH, URGENT])
    assert all(finding.startswith(("ok: ", "error: ")) for finding in findings)
    return [finding for finding in findings if finding.startswith("error: ")]


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [
        (
            {"partition": "bach"},
            "partition bach does not exist; there are small, batch, urgent",
        ),
        ({"time": "2-00:00:00"}, "--time 2-00:00:00 is above the partition's MaxTime=1-00:00:00"),
        ({"nodes": 9}, "9 nodes, the partition has 8"),
        ({"nodes": 9, "spare_nodes": 1}, "9 nodes, the partition has 8"),
        ({"partition": "small,urgent", "nodes": 9}, "9 nodes, the partition has 8"),
    ],
)
def test_what_slurm_would_refuse_is_found_before(cluster, fault):
    (found,) = faults(**cluster)
    assert fault in found


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"time": "24:00:00", "nodes": 8},
        {"partition": "urgent", "time": "9-0"},
        {"partition": "small,urgent", "nodes": 8},
        {"nodes": 12, "min_nodes": 6},
    ],
)
def test_what_slurm_would_grant_has_no_faults(cluster):
    assert faults(**cluster) == []


def test_what_the_start_would_refuse_is_found_before(tmp_path: Path, synthetic_shards: Path):
    folder = tmp_path / "run"
    run = tiny_run(folder, synthetic_shards)
    assert check_run(run)[-1] == f"ok: {folder} is new"
    for changes, fault in (
        ({"sandwich": {"only": str(tmp_path / "gone.json")}}, "gone.json"),
        ({"model": {"checkpoint": str(tmp_path / "gone.pth")}}, "gone.pth does not exist"),
        ({"data": {"val": [str(tmp_path / "gone")]}}, str(tmp_path / "gone")),
    ):
        found = check_run(tiny_run(folder, synthetic_shards, changes))
        (wrong,) = [each for each in found if not each.startswith("ok: ")]
        assert wrong.startswith("error: ")
        assert fault in wrong
    assert list(tmp_path.iterdir()) == []
    prepare_run_folder(run)
    assert check_run(run)[-1] == f"ok: {folder} holds this run, which would go on"
    other = tiny_run(folder, synthetic_shards, {"optim": {"lr": 1.0}})
    assert "holds another run. It differs in\n  optim.lr" in check_run(other)[-1]


@pytest.mark.parametrize(
    ("most", "finding"),
    [
        (8, "ok: at most 8 images at once fit into a GPU of 80 GiB, this run takes 8"),
        (3, "this run takes 8; set --optim.accumulate 4, which gives the same steps"),
        (0, "this run takes 8; choose --engine.precision bf16"),
    ],
)
def test_a_batch_that_does_not_fit_is_found_with_its_remedy(most, finding):
    values = {"data": {"source": "synthetic"}, "optim": {"global_batch": 16}}
    run = TrainRun.model_validate(values | {"cluster": {"gpus_per_node": 2}})
    assert finding in describe_batch(run, most, 80)


def test_the_largest_batch_needs_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    values = {"data": {"source": "synthetic"}, "cluster": {"gpus_per_node": 1}}
    (finding,) = check_memory(TrainRun.model_validate(values))
    assert finding.startswith("not checked: ")
    assert check_memory(TrainRun.model_validate(values | {"cluster": {}})) == []


def test_what_is_known_at_once_is_shown_before_a_steps_memory(monkeypatch, tmp_path: Path):
    class AskedError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise AskedError

    monkeypatch.setattr("supersam.training.step_memory.predict_memory", refuse)
    values = {"data": {"source": "synthetic"}, "run": tmp_path / "run", "dry_run": True}
    shown: list[str] = []
    with pytest.raises(AskedError):
        describe_ranked_run(TrainRun.model_validate(values), "inline", shown.append)
    text = "\n".join(shown)
    for known in ("name: demo", "search space: ", "largest: ", "a checkpoint: ", " is writable"):
        assert known in text


def test_nodes_without_slurm_are_a_users_mistake(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    values = {"data": {"source": "synthetic"}, "cluster": {"nodes": 8}, "run": tmp_path / "run"}
    assert submit(TrainRun.model_validate(values)) == 2
    message = capsys.readouterr().err
    assert "no sbatch on this machine" in message
    assert "leave out --nodes" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("depth", [4, 5])
def test_a_dry_run_opens_the_checkpoint_and_compares_its_sizes(
    depth: int, tiny_shape: EncoderShape, tmp_path: Path, synthetic_shards: Path
):
    weights = tmp_path / "start.pth"
    torch.save(load_sam(replace(tiny_shape, depth=depth)).state_dict(), weights)
    run = tiny_run(tmp_path / "run", synthetic_shards, {"model": {"checkpoint": str(weights)}})
    lines: list[str] = []
    assert describe_ranked_run(run, "inline", lines.append) == (depth == 4)
    said = f"  ok: checkpoint {weights} fits the model"
    assert (said in lines) == (depth == 4)
    refused = [line for line in lines if "does not fit this model: 14 unexpected" in line]
    assert len(refused) == (depth == 5)


def test_a_dry_run_names_every_path_that_is_missing(tmp_path: Path):
    values = {
        "data": {"train": [str(tmp_path / "no_train")], "val": [str(tmp_path / "no_val")]},
        "model": {"checkpoint": str(tmp_path / "no.pth")},
        "run": tmp_path / "run",
    }
    run = TrainRun.model_validate(values)
    errors = [line for line in check_run(run) if line.startswith("error: ")]
    assert len(errors) == 3
    for error, name in zip(errors, ("no_train", "no_val", "no.pth"), strict=True):
        assert name in error
    teacher = TrainRun.model_validate(
        {"data": values["data"], "loss": {"teacher": tmp_path / "no_teacher"}, "run": run.folder}
    )
    assert f"error: --loss.teacher {tmp_path}/no_teacher does not exist" in check_run(teacher)
    assert not run.folder.exists()
