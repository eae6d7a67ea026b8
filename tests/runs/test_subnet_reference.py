"""References to subnets: a word, a file, or a place on a search's front."""

import json

import pytest

from supersam.config import UserError
from supersam.runs.subnet_reference import find_subnet
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
        assert find_subnet(f"{folder / 'pareto.json'}#{place}", tiny_space) == spec
        assert find_subnet(f"{folder}#{place}", tiny_space) == spec


def test_words_and_files(tiny_space, tmp_path):
    assert find_subnet("smallest", tiny_space) == tiny_space.smallest()
    path = tmp_path / "with#mark.json"
    tiny_space.medium().write(path)
    assert find_subnet(str(path), tiny_space) == tiny_space.medium()


def test_other_places_are_refused(tiny_space, front):
    folder, _ = front
    for place, expected in (("3", "has 3 subnets, 0 to 2"), ("x", "best, knee, cheapest")):
        with pytest.raises(UserError, match=expected):
            find_subnet(f"{folder}#{place}", tiny_space)
    with pytest.raises(UserError, match="absent.json is not there"):
        find_subnet(f"{folder / 'absent.json'}#0", tiny_space)
    (folder / "pareto.json").write_text("{}}")
    with pytest.raises(UserError, match="is not a front"):
        find_subnet(f"{folder}#0", tiny_space)
    (folder / "pareto.json").write_text("[]")
    with pytest.raises(UserError, match="holds no subnet yet"):
        find_subnet(f"{folder}#0", tiny_space)


def test_the_front_of_another_run_is_refused(tiny_space, front, tmp_path):
    folder, specs = front
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    (folder / "search.json").write_text(json.dumps({"run": str(ours)}))
    assert find_subnet(f"{folder}#knee", tiny_space, run=ours) == specs[1]
    with pytest.raises(UserError, match="that search is of the run .*ours, not of .*theirs"):
        find_subnet(f"{folder}#knee", tiny_space, run=theirs)
    assert find_subnet(f"{folder}#knee", tiny_space) == specs[1]  # of any run
    assert find_subnet(f"{folder}#knee", tiny_space, run=tmp_path) == specs[1]  # it lies below


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"sha256": "0", "trial": e}])
def test_an_entry_of_a_front_or_a_line_of_a_journal_is_a_file_of_a_subnet(
    tiny_space, front, tmp_path, wrap
):
    folder, specs = front
    entries = json.loads((folder / "pareto.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps(wrap(entries[1])))
    assert find_subnet(str(tmp_path / "one.json"), tiny_space) == specs[1]


def test_a_whole_front_is_not_a_subnet_and_the_message_says_how_to_name_one(tiny_space, front):
    folder, _ = front
    with pytest.raises(UserError, match=r"a front of 3 subnets; name one: .*pareto.json#best"):
        find_subnet(str(folder / "pareto.json"), tiny_space)
    with pytest.raises(UserError, match=r"--sandwich.only nowhere: .* SEARCH#best\|knee"):
        find_subnet("nowhere", tiny_space, option="--sandwich.only")
