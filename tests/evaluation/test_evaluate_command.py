"""launch/evaluate.py: what it refuses, and the file that it leaves."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from supersam.config import EvaluateRun, SourceConfig, SyntheticConfig, UserError, exit_code
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.evaluation.command import run_evaluate
from tests.next_commands import read_next


@pytest.fixture
def run(trained, tmp_path):
    """The trained run with a results folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in trained.folder.iterdir():
        if path.name != "results":
            (folder / path.name).symlink_to(path)
    return trained.model_copy(update={"run": folder})


def evaluation_of(run, **changes):
    values = {"run": run.folder, "subnet": "smallest", "device": "cpu", "images": 2}
    return EvaluateRun.model_validate({**values, **changes})


def test_a_folder_named_twice_is_refused_before_anything_is_predicted(trained, held_out_shards):
    with pytest.raises(UserError, match="share 5 of 5 images"):
        run_evaluate(evaluation_of(trained, data=[held_out_shards, held_out_shards]))


def test_every_kind_of_evaluation_keeps_a_file_of_its_own(
    run, synthetic_shards, held_out_shards, capsys
):
    kinds = (
        {},
        {"images": 1},
        {"prompt": ("box",)},
        {"boundary": True},
        {"data": [synthetic_shards]},
    )
    for changes in kinds:
        assert run_evaluate(evaluation_of(run, json=True, **changes)) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = (run.folder / "results").glob("evaluate-*-step-000003.json")
    kept = [json.loads(path.read_text()) for path in files]
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, printed))
    assert len(kept) == len(kinds)
    assert printed[0]["data"] == [str(held_out_shards)]
    named = evaluation_of(run, data=[held_out_shards], prompt=("box", "point"))
    assert run_evaluate(named) == 0  # it is the first again
    assert len(list((run.folder / "results").iterdir())) == len(kinds)


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(run, capsys):
    (run.folder / "results").write_text("a file where the folder should be")
    assert exit_code(run_evaluate, evaluation_of(run, json=True)) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["step"] == 3
    assert "could not be kept" in printed.err


def test_the_result_is_kept_before_it_is_printed(run, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    with pytest.raises(BrokenPipeError):
        run_evaluate(evaluation_of(run))
    assert len(list((run.folder / "results").iterdir())) == 1


def test_workers_decode_what_the_main_process_decodes(run, capsys):
    printed = []
    for workers in (0, 2):
        assert run_evaluate(evaluation_of(run, images=4, workers=workers, json=True)) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]


def test_a_damaged_image_met_by_a_worker_is_one_line(run, held_out_shards, tmp_path, capsys):
    copy = tmp_path / "damaged"
    shutil.copytree(held_out_shards, copy)
    (shard,) = copy.glob("*.h5")
    image = ShardReader(copy).read_image(3).image
    shard.write_bytes(shard.read_bytes().replace(image, bytes(len(image))))
    damaged = evaluation_of(run, data=[copy], images=5, workers=1)
    assert exit_code(run_evaluate, damaged) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "the image's bytes are damaged" in line
    assert "Traceback" not in line


def test_a_subnet_is_compared_with_another_object_by_object(run, capsys):
    assert run_evaluate(evaluation_of(run, images=4, against="largest", json=True)) == 0
    smallest = json.loads(capsys.readouterr().out)
    assert run_evaluate(evaluation_of(run, images=4, subnet="largest", json=True)) == 0
    largest = json.loads(capsys.readouterr().out)
    assert smallest["against"]["name"] == "largest"
    for prompt in ("point", "box"):
        found = smallest["against"]["differences"][prompt]
        less = smallest["prompts"][prompt]["miou"] - largest["prompts"][prompt]["miou"]
        assert found["mean"] == pytest.approx(less)
        low, high = found["interval"]
        assert low <= found["mean"] <= high
    assert smallest["key"] != largest["key"]
    assert len(list((run.folder / "results").iterdir())) == 2


def test_clicks_are_scored_beside_the_prompts_and_compared(run, capsys):
    changes = {"images": 4, "prompt": ("point",), "clicks": 4}
    assert run_evaluate(evaluation_of(run, **changes, against="largest")) == 0
    out = capsys.readouterr().out
    assert run_evaluate(evaluation_of(run, **changes, subnet="largest", json=True)) == 0
    largest = json.loads(capsys.readouterr().out)["clicks"]
    (kept,) = [line for line in out.splitlines() if line.startswith("kept as ")]
    record = json.loads(Path(kept.removeprefix("kept as ")).read_text())
    smallest, less = record["clicks"], record["against"]["clicks"]
    assert len(smallest["miou"]) == len(less["miou"]) == 4
    for mine, theirs, found in zip(smallest["miou"], largest["miou"], less["miou"], strict=True):
        assert found["mean"] == pytest.approx(mine - theirs)
    needed = smallest["clicks_to_goal"] - largest["clicks_to_goal"]
    assert less["clicks_to_goal"]["mean"] == pytest.approx(needed)
    assert smallest["num_objects"] == record["prompts"]["point"]["num_objects"]
    words = " ".join(out.split())
    for clicks in ("1 click", "3 clicks", "4 clicks"):
        place = int(clicks[0]) - 1
        assert f"{clicks} {smallest['miou'][place]:.4f}" in words
    assert f"clicks to 0.8 {smallest['clicks_to_goal']:.2f}" in words
    *lines, _, _ = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert run_evaluate(evaluation_of(run, **changes | {"clicks": 0}, json=True)) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["prompts"] == record["prompts"]
    assert "clicks" not in plain
    assert len(list((run.folder / "results").iterdir())) == 3


def test_the_weights_before_training_can_be_compared_with(run, capsys):
    """Random ones here: the trained run began from no checkpoint."""
    pair = evaluation_of(
        run, subnet="largest", checkpoint="initial", against="pretrained", json=True
    )
    assert run_evaluate(pair) == 0
    differences = json.loads(capsys.readouterr().out)["against"]["differences"]
    assert [differences[prompt]["mean"] for prompt in ("point", "box")] == [0, 0]


def test_both_prompts_are_what_each_alone_gives(run, capsys):
    alone = {}
    for prompt in ("point", "box", "both"):
        assert run_evaluate(evaluation_of(run, prompt=(prompt,), images=4, json=True)) == 0
        alone |= {prompt: json.loads(capsys.readouterr().out)["prompts"]}
    assert alone["both"] == alone["point"] | alone["box"]
    assert list(alone["both"]) == ["point", "box"]


def test_the_table_ends_with_what_must_be_known(run, capsys):
    assert run_evaluate(evaluation_of(run, images=4)) == 0
    out = capsys.readouterr().out
    *lines, _, _ = out.splitlines()  # then two with paths, which are as long as they are
    assert max(map(len, lines)) <= 100
    words = " ".join(out.split())
    assert "The objects come from only 4 clips, stacks or images" in words
    assert "With a box this subnet scores" in words
    assert "which never looks at the image" in words
    (kept,) = [line for line in out.splitlines() if line.startswith("kept as ")]
    assert json.loads(Path(kept.removeprefix("kept as ")).read_text())["images"] == 4
    name, following = read_next(out)
    assert (name, following.run, following.subnet) == ("export", run.folder, "smallest")


def test_an_evaluation_computes_with_the_threads_that_were_asked_for(run, capsys):
    before = torch.get_num_threads()
    try:
        assert run_evaluate(evaluation_of(run, images=1, threads=2, json=True)) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def tiles(tmp_path):
    """Two generated images of 64 px as eight tiles, and the shards of the same images whole."""
    synthetic = SyntheticConfig(images=2, size_px=64, max_objects=6, seed=3)
    source = SourceConfig(kind="synthetic", synthetic=synthetic)
    convert(source, tmp_path / "whole", workers=1)
    cut = source.model_copy(update={"tile_px": 32, "min_area_px": 1})
    convert(cut, tmp_path / "tiles", workers=1)
    return tmp_path / "tiles"


def test_objects_that_a_tile_cuts_are_left_out_unless_asked_for(run, tiles, capsys):
    counted = {}
    for cut_objects in (False, True):
        changes = {"data": [tiles], "images": None, "cut_objects": cut_objects, "json": True}
        assert run_evaluate(evaluation_of(run, **changes)) == 0
        counted[cut_objects] = json.loads(capsys.readouterr().out)["prompts"]["point"]
    total = ShardReader(tiles).num_masks
    assert counted[True]["num_objects"] == total
    assert counted[True]["num_cut_objects"] == 0
    left_out = counted[False]["num_cut_objects"]
    assert 0 < left_out < total
    assert counted[False]["num_objects"] == total - left_out
    assert counted[True]["num_groups"] == 2 < counted[True]["num_images"]
