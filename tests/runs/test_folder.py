"""The folder of a run: a second start is the same run, or is refused with what differs."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from supersam.config import TrainRun, UserError, load_run
from supersam.config.files import PROGRESS_FILE
from supersam.runs.folder import describe_run, prepare_run_folder
from supersam.space import read_space
from tests.training.runs import tiny_run


@pytest.fixture
def run(synthetic_shards, tmp_path) -> TrainRun:
    return tiny_run(tmp_path / "run", synthetic_shards)


def test_a_new_folder_holds_the_resolved_run_and_its_space(run, tiny_shape):
    space = prepare_run_folder(run)
    assert load_run(TrainRun, run.folder / "run.yaml") == run
    assert read_space(run.folder / "space.yaml", tiny_shape) == space
    text = (run.folder / "run.yaml").read_text()
    assert "# git commit: " in text
    assert "# torch " in text


def test_the_same_run_may_start_again_and_change_where_it_runs(run, synthetic_shards):
    space = prepare_run_folder(run)
    changes = {
        "optim": {"steps": 9},
        "data": {"workers": 2},
        "cluster": {"tasks_per_node": 2},
        "engine": {"log_every": 3, "zero_stage": 2},
        "checkpoint": {"every_steps": 7},
    }
    changed = tiny_run(run.folder, synthetic_shards, changes)
    assert prepare_run_folder(changed) == space
    assert load_run(TrainRun, run.folder / "run.yaml") == changed


def test_an_edit_of_the_settings_by_hand_is_said_once_with_what_it_was(run, capsys):
    prepare_run_folder(run)
    assert capsys.readouterr().err == ""
    file = run.folder / "run.yaml"
    text = file.read_text()
    file.write_text(text.replace(f"lr: {run.optim.lr}", "lr: 0.5") + "# a remark\n")
    assert file.read_text().count("lr: 0.5") == 1
    edited = load_run(TrainRun, file)
    prepare_run_folder(edited)
    said = capsys.readouterr().err
    assert said == (
        f"note: {file} was edited since the last start, which counts from now on: "
        f"optim.lr: {run.optim.lr} -> 0.5\n"
    )
    prepare_run_folder(edited)
    assert capsys.readouterr().err == ""
    (run.folder / "started.yaml").unlink()  # as in a folder of an earlier version
    prepare_run_folder(edited)
    assert capsys.readouterr().err == ""


def test_what_a_run_begins_from_must_be_there_until_it_has_a_checkpoint(
    trained, synthetic_shards, tmp_path
):
    other = tmp_path / "other"
    run = tiny_run(tmp_path / "run", synthetic_shards, {"model": {"checkpoint": str(other)}})
    with pytest.raises(UserError, match="other does not exist"):
        prepare_run_folder(run)
    other.mkdir()
    with pytest.raises(UserError, match="other is a folder without checkpoints of a run; train"):
        prepare_run_folder(run)
    assert not run.folder.exists()
    shutil.rmtree(other)
    shutil.copytree(trained.folder, other)
    prepare_run_folder(run)
    (one,) = (other / "checkpoints").iterdir()
    for start in (other, one):
        larger = {"model": {"checkpoint": str(start), "depth": 6, "global_layers": [1, 5]}}
        with pytest.raises(UserError, match="trained a model of other sizes; see "):
            prepare_run_folder(tiny_run(tmp_path / "larger", synthetic_shards, larger))
    one_step = {"model": {"checkpoint": str(one)}}
    prepare_run_folder(tiny_run(tmp_path / "of_one", synthetic_shards, one_step))
    shutil.rmtree(other)
    with pytest.raises(UserError, match="other does not exist"):
        prepare_run_folder(run)
    (run.folder / PROGRESS_FILE).write_text('{"step": 2}')
    prepare_run_folder(run)


def test_the_sandwich_begins_half_way_and_stays_there_in_a_longer_run(tmp_path, synthetic_shards):
    def of_length(steps: int) -> TrainRun:
        changes = {"sandwich": {"largest_only_steps": None}, "optim": {"steps": steps}}
        return tiny_run(tmp_path / "run", synthetic_shards, changes)

    for steps in (6, 20):
        prepare_run_folder(of_length(steps))
        written = load_run(TrainRun, tmp_path / "run" / "run.yaml")
        assert written.sandwich.largest_only_steps == 3
        assert written.optim.steps == steps


def test_another_run_is_refused_with_every_difference(run, synthetic_shards):
    prepare_run_folder(run)
    before = (run.folder / "run.yaml").read_text()
    changes = {"optim": {"lr": 0.5, "global_batch": 2}, "loss": {"mask": "dice"}}
    with pytest.raises(UserError, match="holds another run") as fault:
        prepare_run_folder(tiny_run(run.folder, synthetic_shards, changes))
    message = str(fault.value)
    for difference in (
        "optim.lr: 0.001 -> 0.5",
        "optim.global_batch: 4 -> 2",
        "loss.mask: dice_bce -> dice",
    ):
        assert difference in message
    assert message.count("->") == 3
    assert (run.folder / "run.yaml").read_text() == before


def test_a_folder_of_something_else_is_refused_and_left_alone(run):
    run.folder.mkdir()
    (run.folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run; choose another --run"):
        prepare_run_folder(run)
    assert [path.name for path in run.folder.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(run):
    run.folder.write_text("mine")
    with pytest.raises(UserError, match=str(run.folder)):
        prepare_run_folder(run)
    assert run.folder.read_text() == "mine"


def test_missing_shards_are_refused_before_anything_is_written(run, tmp_path):
    run = tiny_run(run.folder, tmp_path / "absent")
    with pytest.raises(UserError, match="absent"):
        prepare_run_folder(run)
    assert not run.folder.exists()


def test_a_space_that_does_not_fit_is_refused_before_anything_is_written(run, synthetic_shards):
    run = tiny_run(run.folder, synthetic_shards, {"space": {"removable": [7]}})
    with pytest.raises(UserError, match=r"--space.removable 7 do not exist"):
        prepare_run_folder(run)
    assert not run.folder.exists()


def test_describing_a_run_writes_nothing(run):
    text = describe_run(run)
    for part in ("% smaller", "0 of the largest subnet alone, then 5 of", "largest: ", "smallest: ", "GFLOPs", "[1, 2, 4]", "global_batch: 4"):
        assert part in text
    assert not run.folder.exists()


def test_a_run_is_prepared_and_submitted_without_torch():
    """On a login node torch takes longer to import than all the rest of a submission."""
    script = """
import sys
import supersam.cluster.slurm.submit, supersam.runs.folder
heavy = {"torch", "deepspeed", "ray", "h5py"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
