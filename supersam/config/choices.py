"""Flags that take one word of a few: a typo is found, with the nearest word, before tyro reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from supersam.config.errors import UserError


def check_choices(run_type: type[BaseModel], flags: Sequence[str]) -> None:
    """Raise UserError for a flag whose value is not one of its words; it names the nearest one."""
    known = dict(_choices(run_type, "--"))
    for index, flag in enumerate(flags):
        name, _, joined = flag.partition("=")
        value = joined or "".join(flags[index + 1 : index + 2])
        words = known.get(name.replace("_", "-"))
        if words is None or value in words or not value or value.startswith("-"):
            continue
        close = difflib.get_close_matches(value, words, n=1)
        remedy = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{name} {value} is not known; {remedy}known are {', '.join(words)}")


def _choices(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, field in section.model_fields.items():
        kind: Any = field.annotation
        named = [m.name for m in field.metadata if getattr(m, "name", None) is not None]
        name = named[0] if named else key.replace("_", "-")
        if get_origin(kind) is Literal:
            yield prefix + name, tuple(str(word) for word in get_args(kind))
        elif get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _choices(kind, f"{prefix}{name}." if name else prefix)
