"""launch/export.py: its folder, its numbers, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from supersam.config import UserError, dump_run
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.shards import ShardReader
from supersam.evaluation import SubnetPredictor, evaluate
from supersam.export import load_subnet
from supersam.export.command import run_export
from supersam.export.model_card import ModelCard
from supersam.runs.checkpoint_io import CheckpointManager, read_weights
from supersam.runs.checkpoints import TrainState
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights
from supersam.runtime.distributed import World
from supersam.space import SubnetSpec, read_space, resolve_shape
from tests.commands import launch
from tests.export.runs import export_of
from tests.next_commands import read_next


@pytest.fixture(scope="module")
def space(trained):
    return read_space(trained.folder / "space.yaml", resolve_shape(trained.model))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "smallest"
    assert run_export(export_of(trained, out)) == 0
    return out


def card_of(folder):
    return json.loads((folder / "card.json").read_text())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_exported_subnet_scores_what_it_scores_in_the_supernet(
    trained, space, exported, held_out_shards
):
    card = card_of(exported)
    supernet = load_supernet(trained, space, find_weights(trained, "last"))
    for prompt in ("point", "box"):
        dataset = EvalDataset([ShardReader(held_out_shards)], side=80, prompt=prompt)
        images = build_eval_loader(dataset, World.single())
        expected = evaluate(SubnetPredictor(supernet, space.smallest()), images, boundary=False)
        assert card["metrics"][prompt]["miou"] == expected.miou
        assert card["metrics"][prompt]["miou_interval"] == list(expected.miou_interval)
        assert card["metrics"][prompt]["num_objects"] == expected.num_objects
    assert card["max_difference_from_supernet"] == 0.0


def test_the_card_says_what_it_is_and_where_it_comes_from(trained, space, exported):
    card = card_of(exported)
    assert set(card) == set(ModelCard.__dataclass_fields__)
    assert SubnetSpec.from_dict(card["spec"]) == space.smallest()
    assert SubnetSpec.read(exported / "spec.json") == space.smallest()
    params = sum(p.numel() for p in load_subnet(exported).parameters())
    assert card["cost"]["params"] == params
    assert card["identity"]["step"] == 3
    assert card["start"] == "random weights of seed 0"
    assert card["seen_in_training"] is None
    assert card["latency"]["median_ms"] > 0
    text = (exported / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: segment-anything\n")
    for part in (f"{params:,}", "95 % interval", "step 3", card["versions"]["git"]):
        assert part in text


def test_the_same_export_again_changes_nothing(trained, exported, capsys):
    before = content(exported)
    assert run_export(export_of(trained, exported, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == card_of(exported)
    assert content(exported) == before
    assert run_export(export_of(trained, exported)) == 0
    printed = capsys.readouterr().out
    assert f"model card: {exported / 'README.md'}" in printed
    name, following = read_next(printed)
    assert (name, following.export, following.auto) == ("predict", exported, True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"subnet": "largest"}, "another export.*subnet: "),
        ({"checkpoint": "initial"}, "another export.*step: 3 -> 0"),
        ({"finetune_steps": 2}, "another export.*finetune_steps: 0 -> 2"),
        ({"onnx": True}, "without ONNX"),
        ({"license": "mit"}, "another export.*license: None -> mit.*Choose another --out"),
        ({"images": 2}, "another export.*images: None -> 2"),
    ],
)
def test_another_export_is_not_overwritten(trained, exported, changes, expected):
    pytest.importorskip("onnxruntime", reason="it comes with supersam[onnx]")
    before = content(exported)
    with pytest.raises(UserError, match=f"(?s){expected}"):
        run_export(export_of(trained, exported, **changes))
    assert content(exported) == before


def test_an_export_with_other_evaluation_data_is_another(
    trained, exported, synthetic_shards, held_out_shards
):
    before = content(exported)
    assert run_export(export_of(trained, exported, data=[held_out_shards])) == 0  # the default
    with pytest.raises(UserError, match=r"(?s)another export.*data: .*val'\] -> .*train'\]"):
        run_export(export_of(trained, exported, data=[synthetic_shards]))
    assert content(exported) == before


def test_a_folder_of_something_else_is_refused(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
        run_export(export_of(trained, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_without_a_valid_checkpoint_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        run_export(export_of(trained, tmp_path / "out", run=tmp_path))
    with pytest.raises(UserError, match="no checkpoint '7'; it has step-000003"):
        run_export(export_of(trained, tmp_path / "out", checkpoint="7"))
    for name in ("run.yaml", "space.yaml"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        run_export(export_of(trained, tmp_path / "out", run=tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_subnet_outside_the_space_is_named_with_what_is_allowed(trained, space, tmp_path):
    spec = space.largest()
    cases = {
        r"mlp_widths: 100 of layer 0 is not in \[96, 192, 288, 384\]": replace(
            spec, mlp_widths=(100, *spec.mlp_widths[1:])
        ),
        r"layers: \[3\] must be kept; removable are \[0, 1, 2\]": SubnetSpec((0,), (96,), (3,), 96),
        "embed_dim: 97 is outside 1 to 96": replace(spec, embed_dim=97),
    }
    for expected, wrong in cases.items():
        wrong.write(tmp_path / "spec.json")
        with pytest.raises(UserError, match=expected):
            run_export(export_of(trained, tmp_path / "out", subnet=str(tmp_path / "spec.json")))
    (tmp_path / "spec.json").write_text('{"layers": [0], "heads": [3], "mlp_width": [96]}')
    missing = "has the fields .*; missing: mlp_widths, embed_dim, unknown: mlp_width"
    with pytest.raises(UserError, match=missing):
        run_export(export_of(trained, tmp_path / "out", subnet=str(tmp_path / "spec.json")))
    assert not (tmp_path / "out").exists()


def test_evaluation_data_that_training_saw_is_warned_of_and_written_down(
    trained, synthetic_shards, tmp_path, capsys
):
    out = tmp_path / "out"
    assert run_export(export_of(trained, out, data=[synthetic_shards], images=3)) == 0
    assert "training saw the evaluation data" in capsys.readouterr().err
    assert "is a training set of this run" in card_of(out)["seen_in_training"]
    assert "**Training saw this evaluation data**" in (out / "README.md").read_text()


def test_onnx_files_come_with_their_parity(trained, tmp_path):
    pytest.importorskip("onnxruntime", reason="it comes with supersam[onnx]")
    out = tmp_path / "out"
    assert run_export(export_of(trained, out, onnx=True, images=2)) == 0
    parity = card_of(out)["onnx"]
    assert parity["min_mask_iou"] >= parity["tolerances"]["mask_iou"]
    assert {"encoder.onnx", "decoder.onnx"} < {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_fine_tuning_trains_the_subnet_alone_and_is_written_down(trained, space, tmp_path):
    """In a run of its own, which an export of it finds finished, and whose subnet is its only."""
    words = ["--run", trained.folder, "--subnet", "smallest", "--out", tmp_path / "tuned"]
    words += ["--finetune-steps", "2", "--images", "2", "--device", "cpu"]
    done = launch("export", *words)  # DeepSpeed has one world per process
    assert done.returncode == 0, done.stderr
    card = card_of(tmp_path / "tuned")
    assert card["identity"]["finetune_steps"] == 2
    assert card["identity"]["finetune_lr"] == pytest.approx(1e-4)
    assert "trained alone for 2 steps" in (tmp_path / "tuned" / "README.md").read_text()
    (folder,) = [p for p in (trained.folder / "results" / "finetune").iterdir() if p.is_dir()]
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "train/loss/subnet" in line] == [1, 2]
    assert not any("train/loss/largest" in line for line in losses)
    before, after = (
        read_weights(*CheckpointManager(run, trained.checkpoint, World.single()).latest())
        for run in (trained.folder, folder)
    )
    kept = [f"image_encoder.blocks.{layer}." for layer in space.smallest().layers]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith(tuple(kept)) for name in moved)
    assert not [n for n in moved if "blocks" in n and not n.startswith(tuple(kept))]
    again = export_of(trained, tmp_path / "run", run=folder, subnet=str(folder / "subnet.json"))
    assert run_export(again.model_copy(update={"images": 2})) == 0
    assert card_of(tmp_path / "run")["metrics"] == card["metrics"]
    assert card_of(tmp_path / "run")["start"] == "run `tiny`, random weights of seed 0"
    with pytest.raises(UserError, match="trained one subnet alone"):
        run_export(export_of(trained, tmp_path / "no", run=folder, subnet="largest"))


def search_of(trained, folder, *, selected_on, final=None):
    """A search's folder as far as an export reads it."""
    folder.mkdir()
    space = read_space(trained.folder / "space.yaml", resolve_shape(trained.model))
    entry = {"spec": space.medium().to_dict(), "metrics": {"flops_g": 1.0, "miou": 0.5}}
    (folder / "pareto.json").write_text(json.dumps([entry]))
    record = {"run": str(trained.folder), "data": {"folders": [str(selected_on)]}, "final": final}
    (folder / "search.json").write_text(json.dumps(record))
    return folder


def test_a_card_without_a_final_set_says_so_in_its_first_line(trained, held_out_shards, tmp_path):
    search = search_of(trained, tmp_path / "search", selected_on=held_out_shards)
    out = tmp_path / "out"
    assert run_export(export_of(trained, out, subnet=f"{search}#best")) == 0
    card, text = card_of(out), (out / "README.md").read_text()
    assert (card["selected_on"], card["selection_images"]) == ([str(held_out_shards)], 5)
    first = text.split("\n# ", 1)[1].split("\n\n")[1]
    assert first.startswith(f"**No final set: this subnet was selected on `{held_out_shards}`")
    assert card["less_largest"]["point"]["num_groups"] == card["metrics"]["point"]["num_groups"]


def test_a_final_set_is_what_the_card_measures_on(
    trained, held_out_shards, synthetic_shards, tmp_path
):
    final = {"folders": [str(synthetic_shards)], "share": None}
    search = search_of(trained, tmp_path / "search", selected_on=held_out_shards, final=final)
    out = tmp_path / "out"
    assert run_export(export_of(trained, out, subnet=f"{search}#best", images=3)) == 0
    card, text = card_of(out), (out / "README.md").read_text()
    assert card["evaluation_data"] == [str(synthetic_shards)]
    assert card["selection_images"] == 0
    measured = f"measured on `{synthetic_shards}`, which the search never saw"
    assert f"Selected on `{held_out_shards}`, {measured}" in text


def test_a_card_says_what_the_prompts_alone_give_away(exported):
    card, text = card_of(exported), (exported / "README.md").read_text()
    point, box = (card["metrics"][prompt] for prompt in ("point", "box"))
    assert 0 < point["prior_miou"] < box["prior_miou"] <= 1
    assert "With a box it scores less than the mean training mask in the box" in text
    assert "The objects come from only 5 clips, stacks or images" in text
    assert f"| box | {box['miou']:.4f} |" in text


def test_a_share_of_the_images_is_looked_at_by_default(trained, exported):
    """200 of them; a set of fewer is looked at whole, and is then the same export as of all."""
    assert export_of(trained, exported).images == 200
    assert card_of(exported)["evaluation_images"] is None
    before = content(exported)
    assert run_export(export_of(trained, exported, images=None)) == 0
    assert content(exported) == before


def test_a_share_is_said_with_how_to_take_all(trained, tmp_path, capsys):
    assert run_export(export_of(trained, tmp_path / "few", images=2)) == 0
    said = capsys.readouterr()
    assert "on 2 images, spread evenly; --images None takes all" in said.out
    assert "evaluating it on 2 of " in said.err


@pytest.mark.parametrize("is_averaged", [False, True])
def test_a_card_says_where_the_weights_are_averaged(trained, space, tmp_path, is_averaged):
    optim = trained.optim.model_copy(update={"ema": 0.99})
    run = trained.model_copy(update={"run": tmp_path / "run", "optim": optim})
    shutil.copytree(trained.folder, run.folder, ignore=shutil.ignore_patterns("step-*"))
    (run.folder / "run.yaml").write_text(dump_run(run))
    supernet = load_supernet(trained, space, find_weights(trained, "last"))
    CheckpointManager(run.folder, run.checkpoint, World.single()).save(
        supernet,
        iter(()),
        TrainState(step=3),
        average=dict(supernet.named_parameters()) if is_averaged else {},
        order={},
        data=[],
        versions={},
    )
    out = tmp_path / "out"
    assert run_export(export_of(run, out, images=1)) == 0
    assert card_of(out)["averaged"] == (0.99 if is_averaged else None)
    told = "moving average of the weights, decay 0.99" in (out / "README.md").read_text()
    assert told == is_averaged
