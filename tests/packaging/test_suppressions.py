"""What checks are told to overlook is overlooked for a reason that stands beside it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.paths import ROOT

FOLDERS = ("supersam", "tests", "benchmarks", "experiments", "launch", "slurm")
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore)(.*)")
WITH_REASON = re.compile(r"(: [A-Z]+[0-9]+\W+\w|\[[a-z-]+\]  # \w)")


BROAD = {None, "Exception", "BaseException"}
"""Of what a handler catches; None where it does not say."""
SKIPS = {
    *("pytest.skip", "pytest.xfail", "pytest.importorskip"),
    *("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail"),
}


def sources() -> Iterator[tuple[Path, str]]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT), file.read_text(encoding="utf-8")


def broad_handlers(text: str) -> Iterator[int]:
    """The lines of handlers that catch everything and have no comment beside them."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {getattr(kind, "id", None if kind is None else "") for kind in kinds}
            if names & BROAD and re.search(r"#.*\w", lines[node.lineno - 1]) is None:
                yield node.lineno


def skips_without_a_reason(text: str) -> Iterator[int]:
    """The lines that leave a test out, or let it fail, and do not say why."""
    tree = ast.parse(text)
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or ast.unparse(node) not in SKIPS:
            continue
        call = calls.get(id(node))
        reasons = [] if call is None else [w.value for w in call.keywords if w.arg == "reason"]
        if call is not None and ast.unparse(node) == "pytest.skip":
            reasons += call.args
        if not reasons or isinstance(reasons[0], ast.Constant) and not reasons[0].value:
            yield node.lineno


def test_every_suppression_names_a_rule_and_a_reason():
    bare = []
    for file, text in sources():
        for number, line in enumerate(text.splitlines(), 1):
            found = SUPPRESSION.search(line)
            if found is not None and WITH_REASON.match(found[2]) is None:
                bare.append(f"{file}:{number}")
    assert bare == []


def test_whoever_catches_everything_says_why():
    assert [f"{file}:{line}" for file, text in sources() for line in broad_handlers(text)] == []


def test_every_test_that_is_left_out_says_why():
    bare = [f"{file}:{line}" for file, text in sources() for line in skips_without_a_reason(text)]
    assert bare == []


def test_what_gives_no_reason_is_found():
    caught = "try:\n    f()\nexcept{}\n    pass\n"
    for kind in (":", " Exception:", " BaseException as e:", " (OSError, Exception):"):
        assert list(broad_handlers(caught.format(kind))) == [3]
    for kind in (" OSError:", " Exception:  # why", ":  # why"):
        assert list(broad_handlers(caught.format(kind))) == []
    for skip in ("mark.skip", "mark.skipif(True)", 'skip("")', 'importorskip("a")', "mark.xfail()"):
        assert list(skips_without_a_reason(f"x = pytest.{skip}")) == [1]
    for skip in ('skip("why")', 'mark.skipif(True, reason="why")', "skip(check.stderr)"):
        assert list(skips_without_a_reason(f"x = pytest.{skip}")) == []


def test_a_suppression_without_a_rule_or_a_reason_is_found():
    for text in ("noqa", "noqa: E402", "type: ignore", "type: ignore[misc]"):
        found = SUPPRESSION.search(f"#  {text}")
        assert found is not None
        assert WITH_REASON.match(found[2]) is None
