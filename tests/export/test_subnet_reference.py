"""`--subnet`: a word, a file, or a place on a search's front."""

import json

import pytest

from supersam.config import UserError
from supersam.export.subnet_reference import choose
from supersam.search import Trial


@pytest.fixture
def front(tiny_space, tmp_path):
    """Flat after a steep start: the knee is the second."""
    specs = [tiny_space.smallest(), tiny_space.medium(), tiny_space.largest()]
    scores = [(1.0, 0.5), (2.0, 0.68), (5.0, 0.7)]
    trials = [
        Trial(
            key=str(i), spec=spec, stage="search", status="complete",
            metrics={"flops_g": flops, "miou": miou}, num_images=1, num_objects=1, seconds=0.0,
            searcher="random", batch=0, index=i, step=1, host="here",
        )
        for i, (spec, (flops, miou)) in enumerate(zip(specs, scores, strict=True))
    ]  # fmt: skip
    (tmp_path / "pareto.json").write_text(json.dumps([trial.to_dict() for trial in trials]))
    return tmp_path, specs


def test_places_on_a_front(tiny_space, front):
    folder, specs = front
    expected = {"0": specs[0], "2": specs[2], "best": specs[2], "knee": specs[1],
                "cheapest": specs[0]}  # fmt: skip
    for place, spec in expected.items():
        assert choose(f"{folder / 'pareto.json'}#{place}", tiny_space) == spec
        assert choose(f"{folder}#{place}", tiny_space) == spec


def test_words_and_files(tiny_space, tmp_path):
    assert choose("smallest", tiny_space) == tiny_space.smallest()
    path = tmp_path / "with#mark.json"
    tiny_space.medium().write(path)
    assert choose(str(path), tiny_space) == tiny_space.medium()


def test_other_places_are_refused(tiny_space, front):
    folder, _ = front
    for place, expected in (("3", "has 3 subnets, 0 to 2"), ("x", "best, knee, cheapest")):
        with pytest.raises(UserError, match=expected):
            choose(f"{folder}#{place}", tiny_space)
    with pytest.raises(UserError, match="absent.json is not there"):
        choose(f"{folder / 'absent.json'}#0", tiny_space)
    (folder / "pareto.json").write_text("{}}")
    with pytest.raises(UserError, match="is not a front"):
        choose(f"{folder}#0", tiny_space)
    (folder / "pareto.json").write_text("[]")
    with pytest.raises(UserError, match="holds no subnet yet"):
        choose(f"{folder}#0", tiny_space)
