"""A subnet as a value: equal subnets are equal, files give back what they got."""

import json

import numpy as np
import pytest

from supersam.space import SubnetSpec

GOOD = {"layers": [0, 2], "mlp_widths": [64, 32], "heads": [2, 1], "embed_dim": 32}


def test_a_spec_survives_json_and_its_file(tiny_resolutions, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(20):
        spec = tiny_resolutions.sample(random)
        assert SubnetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        spec.write(tmp_path / "spec.json")
        assert SubnetSpec.read(tmp_path / "spec.json") == spec


def test_keys_are_equal_for_equal_specs_alone(tiny_resolutions):
    random = np.random.default_rng(0)
    specs = {tiny_resolutions.sample(random) for _ in range(200)}
    assert len({spec.key() for spec in specs}) == len(specs)
    for spec in specs:
        twin = SubnetSpec.from_dict(dict(reversed(spec.to_dict().items())))
        assert twin.key() == spec.key()
        assert hash(twin) == hash(spec)


def test_keys_never_change_for_journals_outlive_versions():
    assert SubnetSpec.from_dict(GOOD).key() == "3122208070b496e4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0]}, "1 layers, 2 mlp_widths, 2 heads"),
        ({"layers": [2, 0]}, "must be ascending"),
        ({"layers": [0, 0]}, "each layer once"),
        ({"layers": [], "mlp_widths": [], "heads": []}, "at least one layer"),
        ({"heads": [1.0, 2]}, r"heads=\[1.0, 2\] must be whole numbers"),
        ({"heads": [True, 2]}, "must be whole numbers"),
        ({"embed_dim": "32"}, "embed_dim"),
        ({"mlp_widths": 64}, "mlp_widths=64 must be whole numbers"),
        ({"colour": 1}, "a subnet has the fields layers, mlp_widths, heads, embed_dim"),
        ({"colour": 1, "resolution": 48}, "unknown: colour$"),
        ({"resolution": 48.0}, r"resolution=\[48.0\] must be whole numbers"),
    ],
)
def test_nonsense_is_refused_with_its_field(tmp_path, change, message):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message) as fault:
        SubnetSpec.read(path)
    assert str(path) in str(fault.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"largest"', "\x00"])
def test_a_file_that_is_no_spec_is_refused_by_name(tmp_path, text):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"spec\.json is not a subnet"):
        SubnetSpec.read(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.json is not a subnet"):
        SubnetSpec.read(tmp_path / "absent.json")
