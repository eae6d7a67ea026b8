"""The benchmark of large sets asks all its questions; what it answers is not tested here."""

import json
import sys

from benchmarks import scale


def test_every_question_is_asked_of_both_sets(tmp_path, monkeypatch, capsys):
    sizes = ["--shards", "12", "--images-per-shard", "30", "--share", "4", "--samples", "32"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--folder", str(tmp_path)])
    monkeypatch.setattr(scale.resource, "setrlimit", lambda *_: None)  # the other tests' limit too
    assert scale.main() == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])["scale"]
    for question in scale.QUESTIONS:
        assert {*record[question]["small"]} == {*record[question]["large"]}
    assert record["worker"]["large"]["open_files"] > 0
    assert not any(tmp_path.iterdir())
