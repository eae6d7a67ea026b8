"""JSON lines that survive a writer killed in mid-line."""

import logging

import pytest

from supersam.runtime.jsonl import append_jsonl, append_lines, open_jsonl, read_jsonl


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in range(3):
        append_jsonl(path, {"number": number}, durable=number == 2)
    assert read_jsonl(path, lambda value: value["number"]) == [0, 1, 2]
    assert path.read_bytes() == b'{"number": 0}\n{"number": 1}\n{"number": 2}\n'


def test_a_file_that_is_missing_holds_nothing(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl", dict) == []


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_cut_short_anywhere_costs_itself_alone(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"number": 0})
    path.write_bytes(path.read_bytes() + b'{"number": 1}\n'[:cut])
    append_jsonl(path, {"number": 2})
    expected = [0, 1, 2] if cut == 13 else [0, 2]  # cut before the newline alone, nothing is lost
    assert read_jsonl(path, lambda value: value["number"]) == expected


def test_what_the_parser_refuses_is_left_out_and_named(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 0}\n[1]\n\xff\xfe\n{"other": 1}\n{"number": 4}\n')
    with caplog.at_level(logging.WARNING, logger="supersam.runtime.jsonl"):
        assert read_jsonl(path, lambda value: value["number"], warn=True) == [0, 4]
    assert [record.args[1] for record in caplog.records] == [2, 3, 4]


def test_several_lines_are_one_append(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"torn")
    descriptor = open_jsonl(path)
    append_lines(descriptor, b'{"a": 1}\n{"a": 2}\n', durable=True)
    assert path.read_bytes() == b'torn\n{"a": 1}\n{"a": 2}\n'
    assert read_jsonl(path, lambda value: value["a"]) == [1, 2]
