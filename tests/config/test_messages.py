"""Messages speak the language of the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from pydantic import BaseModel

from supersam.config import (
    DesignRun,
    EvaluateRun,
    ExportRun,
    SearchRun,
    ShardRun,
    TrainRun,
)
from tests.paths import ROOT

RUNS = (TrainRun, SearchRun, DesignRun, ShardRun, EvaluateRun, ExportRun)


def settings(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names, as in YAML, of what lies in a section."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}"


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Strings of a file that are no docstrings, with their lines."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def test_a_setting_is_named_as_it_is_typed():
    known = {name for run in RUNS for name in settings(run)}
    assert {"optim.lr", "source.root", "cluster.nodes"} <= known
    in_words = re.compile(rf"(?<![-\w/.])({'|'.join(map(re.escape, sorted(known)))})\b")
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "supersam").rglob("*.py"))
        for line, text in texts(path.read_text(encoding="utf-8"))
        if text not in known and in_words.search(text)
    ]
    assert found == [], "write the flag: --optim.lr, and --root for source.root"
