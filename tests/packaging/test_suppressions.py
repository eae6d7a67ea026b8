"""What checks are told to overlook is overlooked for a reason that stands beside it."""

from __future__ import annotations

import re

from tests.paths import ROOT

FOLDERS = ("supersam", "tests", "benchmarks", "experiments", "launch", "slurm")
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore)(.*)")
WITH_REASON = re.compile(r"(: [A-Z]+[0-9]+\W+\w|\[[a-z-]+\]  # \w)")


def test_every_suppression_names_a_rule_and_a_reason():
    bare = []
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                found = SUPPRESSION.search(line)
                if found is not None and WITH_REASON.match(found[2]) is None:
                    bare.append(f"{file.relative_to(ROOT)}:{number}")
    assert bare == []


def test_a_suppression_without_a_rule_or_a_reason_is_found():
    for text in ("noqa", "noqa: E402", "type: ignore", "type: ignore[misc]"):
        found = SUPPRESSION.search(f"#  {text}")
        assert found is not None
        assert WITH_REASON.match(found[2]) is None
