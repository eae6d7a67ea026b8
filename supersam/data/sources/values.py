"""Values of a JSON file as numbers and lists, or a fault in words a user understands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from supersam.runtime.foreign import foreign_content

_SHOWN = 40
_LONGEST_ID = 1 << 63


class BadValueError(ValueError):
    """A value that does not mean what its place in the file needs. The message is for the user."""


def load_json(data: bytes) -> Any:
    """Return what a JSON file holds. Raises BadValueError."""
    if (foreign := foreign_content(data, is_text_meant=True)) is not None:
        raise BadValueError(f"is not a JSON file: it is {foreign}")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise BadValueError("is not readable: its lists are nested too deeply") from error
    except UnicodeDecodeError as error:
        raise BadValueError(
            f"is not a JSON file: byte {error.start} is not {error.encoding.upper()} text; save it "
            "as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise BadValueError(f"is not a JSON file: {error}") from error
    except ValueError as error:
        raise BadValueError("holds a number of more digits than can be read") from error


def one_line(text: str) -> str:
    """Return `text` with what would break a line of a terminal, or its encoding, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show(value: object) -> str:
    """Return a value as it stands in JSON, cut to a few words."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number(value: object, what: str) -> float:
    """Return a finite number, also one written as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadValueError(f"{what} is {show(value)}; a number is needed") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValueError(f"{what} is {show(value)}; a number is needed")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise BadValueError(f"{what} is {show(value)}; a finite number is needed")
    return found


def whole(value: object, what: str) -> int:
    """Return a whole number, also one written as text or as 60.0."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = number(value, what)
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        return int(value)  # exact beyond 2^53
    if found != int(found):
        raise BadValueError(f"{what} is {show(value)}; a whole number is needed")
    return int(found)


def category(value: object) -> int:
    """Return a category id that shards can hold; 0 where the source has none."""
    if value is None:
        return 0
    found = whole(value, "category_id")
    if not -_LONGEST_ID <= found < _LONGEST_ID:
        raise BadValueError(f"category_id is {show(value)}; at most 63 bits can be stored")
    return found


def image_size(record: object, what: str) -> tuple[int, int] | None:
    """Return the (height, width) that `record` states; None where it states none."""
    if not isinstance(record, dict) or record.get("height") is None or record.get("width") is None:
        return None
    size = (whole(record["height"], f"{what} height"), whole(record["width"], f"{what} width"))
    if min(size) < 1:
        raise BadValueError(f"{what} size is {size[0]} x {size[1]}; it starts at 1 x 1")
    return size


def list_of(value: object, what: str) -> list[Any]:
    """Return a list; null stands for an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        kind = "an object" if isinstance(value, dict) else show(value)
        raise BadValueError(f"{what} is {kind}; a list is needed")
    return value


def not_utf8(path: str | Path) -> bool:
    """Return whether a file's name is not UTF-8 text, so that it cannot be stored."""
    return any("\ud800" <= letter <= "\udfff" for letter in str(path))
