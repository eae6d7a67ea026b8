"""An exported folder: written whole or not at all, read without the rest of the package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from supersam.config import UserError
from supersam.export import export_subnet, load_subnet
from supersam.model import extract_subnet
from supersam.standalone import CONFIG, LOADER, MANIFEST, WEIGHTS


@pytest.fixture(scope="module")
def supernet(make_supernet):
    return make_supernet()


@pytest.fixture
def exported(supernet, tmp_path):
    export_subnet(supernet, supernet.space.smallest(), tmp_path / "out")
    return tmp_path / "out"


def test_any_subnet_comes_back_as_it_went(supernet, tmp_path):
    random = np.random.default_rng(0)
    space = supernet.space
    for index, spec in enumerate([space.largest(), *(space.sample(random) for _ in range(5))]):
        export_subnet(supernet, spec, tmp_path / str(index))
        back, expected = load_subnet(tmp_path / str(index)), extract_subnet(supernet, spec)
        assert type(back) is Sam
        assert not back.training
        assert repr(back) == repr(expected)
        states = back.state_dict(), expected.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        pixels = torch.randn(1, 3, space.shape.image_size, space.shape.image_size)
        assert torch.equal(back.image_encoder(pixels), expected.image_encoder(pixels))


BLOCKED = (
    "supersam", "deepspeed", "ray", "submitit", "pydantic", "tyro", "yaml", "h5py", "pycocotools",
    "tensorboard", "onnx", "onnxruntime", "optuna", "opentuner", "matplotlib",
)  # fmt: skip


def test_it_loads_with_its_own_loader_where_supersam_is_not(exported, supernet, tmp_path):
    """Only torch, segment-anything and safetensors are there; the masks are the same."""
    program = f"""
import sys
for name in {BLOCKED}:
    sys.modules[name] = None  # importing it raises ImportError
sys.path.insert(0, {str(exported)!r})
import torch
from load import load_subnet
sam = load_subnet()
torch.manual_seed(0)
side = sam.image_encoder.img_size
torch.save((type(sam).__module__, sam.image_encoder(torch.randn(1, 3, side, side))), "said.pt")
"""
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    module, embedding = torch.load(tmp_path / "said.pt")
    assert module == "segment_anything.modeling.sam"
    side = supernet.space.shape.image_size
    expected = extract_subnet(supernet, supernet.space.smallest())
    torch.manual_seed(0)
    torch.testing.assert_close(
        embedding, expected.image_encoder(torch.randn(1, 3, side, side)), rtol=0, atol=0
    )


def test_a_folder_says_what_it_is_and_checks_itself(exported):
    config = json.loads((exported / CONFIG).read_text())
    assert config["model_type"] == "segment-anything"
    assert config["needs"] == ["torch", "segment-anything", "safetensors"]
    assert config["loader"].startswith(LOADER)
    command = [sys.executable, "-I", str(exported / LOADER)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    layers = len(config["sizes"]["layers"])
    assert f"{layers} encoder layers" in done.stdout
    with (exported / WEIGHTS).open("ab") as file:
        file.write(b"x")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{WEIGHTS} is damaged" in done.stderr


def test_segment_anythings_own_tools_run_on_it(exported):
    sam = load_subnet(exported)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, _, _ = predictor.predict(np.array([[12.0, 30.0]]), np.array([1]))
    assert masks.shape == (3, 60, 80)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=2, pred_iou_thresh=-1e9, stability_score_thresh=-1.0
    )
    assert len(generator.generate(image)) > 0


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_changed_or_missing_file_is_named(exported, name):
    path = exported / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_subnet(exported)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_subnet(exported)


def test_another_folder_and_another_format_are_refused(exported, tmp_path):
    with pytest.raises(ValueError, match="not an exported subnet"):
        load_subnet(tmp_path)
    values = json.loads((exported / MANIFEST).read_text())
    (exported / MANIFEST).write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(ValueError, match="has format 99; this software reads 1"):
        load_subnet(exported)


def test_a_failure_leaves_nothing_behind(supernet, tmp_path):
    def fail(folder, sam):
        assert (folder / WEIGHTS).is_file()
        raise RuntimeError("not good enough")

    with pytest.raises(RuntimeError, match="not good enough"):
        export_subnet(supernet, supernet.space.smallest(), tmp_path / "out", complete=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_called_one_that_cannot_be_written(supernet, tmp_path):
    def fail(folder, sam):
        (tmp_path / "shard-000000.h5").read_bytes()

    with pytest.raises(UserError, match="No such file.*shard-000000.h5.*again") as fault:
        export_subnet(supernet, supernet.space.smallest(), tmp_path / "out", complete=fail)
    assert "write" not in str(fault.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(supernet, exported, tmp_path):
    before = (exported / MANIFEST).read_bytes()
    with pytest.raises(UserError, match="nothing is overwritten"):
        export_subnet(supernet, supernet.space.largest(), exported)
    assert (exported / MANIFEST).read_bytes() == before
    (tmp_path / "empty").mkdir()
    export_subnet(supernet, supernet.space.largest(), tmp_path / "empty")


def test_every_file_is_in_the_manifest_and_readable_by_others(exported):
    names = set(json.loads((exported / MANIFEST).read_text())["files"])
    assert names | {MANIFEST} == {path.name for path in exported.iterdir()}
    modes = {path.stat().st_mode for path in exported.iterdir()}
    assert len(modes) == 1
