"""Slips in flags and in words that are one of a few: found, with the nearest, before tyro reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from tyro.conf import Positional, Suppress

from supersam.config.errors import UserError

_ALWAYS = ("--config", "--help", "--version")


def check_choices(run_type: type[BaseModel], flags: Sequence[str]) -> None:
    """Raise UserError for a mistyped flag, or a value that is none of its flag's words or numbers.

    The message names the nearest one. A flag that is like none is left to tyro.
    """
    known = {name: flag for flag in known_flags(run_type) for name in flag.names}
    for index, word in enumerate(flags):
        given, joined, value = word.partition("=")
        if not given.startswith("--"):
            continue
        flag = known.get(given.replace("_", "-"))
        if flag is None:
            _refuse_slip(given, known)
            continue
        following = flags[index + 1 :] if flag.is_repeated else flags[index + 1 : index + 2]
        for each in [value] if joined else _until_flag(following):
            _require_known(given, each, flag.words)
            _require_number(given, each, flag.number)


class Flag(NamedTuple):
    """A flag of a command line."""

    names: tuple[str, ...]
    words: tuple[str, ...]
    """What its value may be; empty where that is open."""
    is_repeated: bool
    """Whether it takes several values."""
    number: type[int] | type[float] | None
    """What its value must be, where that is a number."""
    section: str
    """Name of the class that declares it."""
    field: str
    """Its name there."""


def known_flags(section: type[BaseModel], prefix: str = "--") -> Iterator[Flag]:
    """Yield every flag of a configuration, with those of the sections in it."""
    for key, field in section.model_fields.items():
        kind, metadata = field.annotation, field.metadata
        named = [m.name for m in metadata if getattr(m, "name", None) is not None]
        name = named[0] if named else key.replace("_", "-")
        if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from known_flags(kind, f"{prefix}{name}." if name else prefix)
            continue
        if Positional in metadata or Suppress in metadata:
            continue
        aliases = [alias for m in metadata for alias in getattr(m, "aliases", None) or ()]
        turned_off = [f"{prefix}no-{name}"] if kind is bool else []
        names = (prefix + name, *aliases, *turned_off)
        inner, is_repeated = _kind_of_one(kind)
        is_choice = get_origin(inner) is Literal
        words = tuple(str(word) for word in get_args(inner)) if is_choice else ()
        number = inner if inner in (int, float) else None
        yield Flag(names, words, is_repeated, number, section.__name__, key)


def _kind_of_one(kind: Any) -> tuple[Any, bool]:
    """The type of one value, without bounds and None, and whether there are several values."""
    is_repeated = False
    while get_origin(kind) in (Annotated, Union, UnionType, tuple):
        parts = [part for part in get_args(kind) if part is not NoneType]
        if get_origin(kind) in (Union, UnionType) and len(parts) > 1:
            break
        is_repeated |= get_origin(kind) is tuple
        kind = parts[0]
    return kind, is_repeated


def _until_flag(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if not word or word.startswith("-"):
            return
        yield word


def _refuse_slip(given: str, known: dict[str, Flag]) -> None:
    close = difflib.get_close_matches(given, [*known, *_ALWAYS], n=1, cutoff=0.75)
    if close and close[0] != given:
        raise UserError(f"{given} is not a flag of this command; did you mean {close[0]}?")


def _require_known(given: str, value: str, words: Sequence[str]) -> None:
    if not words or value in (*words, "None"):
        return
    close = difflib.get_close_matches(value, words, n=1)
    remedy = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"{given} {value} is not known; {remedy}known are {', '.join(words)}")


def _require_number(given: str, value: str, number: type[int] | type[float] | None) -> None:
    if number is None or value == "None":
        return
    try:
        number(value)
    except ValueError:
        kind = "a whole number" if number is int else "a number"
        raise UserError(f"{given} {value} is not {kind}") from None
