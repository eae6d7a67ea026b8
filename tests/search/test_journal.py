from __future__ import annotations

import multiprocessing

import pytest

from supersam.config import UserError
from supersam.search import Journal, Trial, read_journal, trial_key
from tests.search.trials import make_trial


def test_a_trial_is_read_back_equal(tmp_path):
    trial = make_trial(1, miou=0.1 + 0.2, params_m=1 / 3, rungs=((4, 0.123456789),))
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([trial])
    assert read_journal(tmp_path / "journal.jsonl") == [trial]
    assert Trial.from_dict(trial.to_dict()) == trial


def test_a_key_is_written_once(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert len(journal.append([make_trial(1), make_trial(2)])) == 2
    assert journal.append([make_trial(1, miou=0.9)]) == []
    assert [t.key for t in read_journal(tmp_path / "journal.jsonl")] == ["1", "2"]


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_line_cut_short_loses_itself_and_nothing_else(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([make_trial(i) for i in range(3)])
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path)
    assert [t.key for t in again] == (["0", "1"] if cut > 1 else ["0", "1", "2"])
    again.append([make_trial(2), make_trial(3)])
    assert [t.key for t in read_journal(path)] == ["0", "1", "2", "3"]


def test_a_changed_number_is_noticed(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    Journal(path).append([make_trial(0, miou=0.25), make_trial(1)])
    path.write_text(path.read_text().replace("0.25", "0.75"))
    assert [t.key for t in read_journal(path)] == ["1"]
    assert "line 1 is damaged" in caplog.text


def test_two_searches_cannot_write_to_one_journal(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        fault = pool.apply(_try_to_open, (tmp_path / "journal.jsonl",))
    assert "another search is writing" in fault
    journal.close()


def _try_to_open(path):
    try:
        Journal(path)
    except UserError as fault:
        return str(fault)
    return "opened"


def test_the_key_names_subnet_and_protocol():
    spec, other = make_trial(0).spec, make_trial(1).spec
    keys = {
        trial_key(spec, {"weights": "a"}),
        trial_key(spec, {"weights": "b"}),
        trial_key(other, {"weights": "a"}),
    }
    assert len(keys) == 3
    assert trial_key(spec, {"a": 1, "b": 2}) == trial_key(spec, {"b": 2, "a": 1})
