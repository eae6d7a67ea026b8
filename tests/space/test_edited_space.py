"""A `space.yaml` edited by hand into nonsense: one message with the nearest thing that works."""

from __future__ import annotations

import pytest
import yaml

from supersam.config import UserError
from supersam.space import SHAPES, published_space, read_space

SHAPE = SHAPES["vit_t"]


def edited(path, **changes):
    path.write_text(yaml.safe_dump({**published_space(SHAPE).to_dict(), **changes}))
    return path


def with_layer(name, layer, value):
    rows = published_space(SHAPE).to_dict()[name]
    rows[layer] = value
    return {name: rows}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (with_layer("mlp_widths", 3, [768, 192]), r"mlp_widths\[3\].*nearest is \[192, 768\]"),
        (with_layer("mlp_widths", 3, [192, 9999]), r"nearest is \[192, 768\]"),
        (with_layer("mlp_widths", 3, ["wide"]), r"mlp_widths\[3\].*whole numbers"),
        (with_layer("heads", 0, [0, 3]), r"heads\[0\].*nearest is \[1, 3\]"),
        (with_layer("removal", 1, 1.5), r"removal\[1\]=1.5.*0.9 is the nearest"),
        (with_layer("removal", 1, -1), r"removal\[1\].*0 is the nearest"),
        (with_layer("removal", 1, "often"), "'often'; it must be a list of numbers"),
        ({"removal": [0.5] * 12}, r"removal\[0\] to 0"),
        ({"removal": [0.5] * 3}, "removal has 3 entries; the encoder has 12 layers"),
        ({"removal": None}, "not a list"),
        ({"mlp_widths": 7}, "not a list"),
        ({"widths": [1]}, "has the fields"),
    ],
)
def test_nonsense_is_named_with_file_place_and_remedy(tmp_path, changes, expected):
    path = edited(tmp_path / "space.yaml", **changes)
    with pytest.raises(UserError, match=expected) as fault:
        read_space(path, SHAPE)
    assert str(path) in str(fault.value)
    assert "\n" not in str(fault.value)
