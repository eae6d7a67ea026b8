"""What lies in the place of the file that is meant: a pointer to it, an archive, a web page."""

from __future__ import annotations

import codecs
from pathlib import Path

HEAD_BYTES = 512
"""Enough of a file's beginning to tell."""
_PACKED = (
    (b"\x1f\x8b", "compressed by gzip; unpack it with gunzip"),
    (b"BZh", "compressed by bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed by xz; unpack it with unxz"),
    (b"(\xb5/\xfd", "compressed by zstd; unpack it with unzstd"),
    (b"PK\x03\x04", "a ZIP archive; unpack it with unzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
)
"""How files begin that hold others, and what they are. PyTorch's own files are ZIP archives too."""
_TAR = slice(257, 262), b"ustar"
_STAND_INS = (
    ("version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
    ("/annex/objects/", "a git-annex pointer; fetch the file itself with git annex get"),
    ("<", "a web page or other XML, as a failed download leaves it; fetch it again"),
)
"""How texts begin that stand for another file."""
_REMEDY = "put the right file in its place, or name another one"
_JSON = f"JSON, such as an index of several files or a server's message; {_REMEDY}"
_TEXT = f"a text; {_REMEDY}"


def read_head(path: Path) -> bytes:
    """Return the beginning of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def foreign_content(head: bytes, *, is_text_meant: bool = False) -> str | None:
    """Return what a file that begins with `head` is instead, and the remedy; None if unknown.

    The words complete "FILE is ...". A text of no known kind is foreign unless one is meant.
    """
    head = head[:HEAD_BYTES]
    if head == b"":
        return "empty, as an interrupted download leaves it; fetch it again"
    if not head.strip(b"\0"):
        return "filled with zeros, as an interrupted copy leaves it; fetch it again"
    for begin, words in _PACKED:
        if head.startswith(begin):
            return words
    place, mark = _TAR
    if head[place] == mark:
        return "a TAR archive; unpack it with tar"
    text = _as_text(head)
    if text is None:
        return None
    for start, words in _STAND_INS:
        if text.startswith(start):
            return words
    if is_text_meant:
        return None
    return _JSON if text.startswith("{") else _TEXT


def _as_text(head: bytes) -> str | None:
    """The text that a file begins with, without space before it; None where it is not UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # its end may be cut
    except UnicodeDecodeError:
        return None
    is_printable = all(letter.isprintable() or letter.isspace() for letter in text)
    return text.lstrip() if is_printable else None
