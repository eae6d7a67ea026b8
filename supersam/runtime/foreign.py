"""What lies in the place of the file that is meant: a pointer to it, an archive, a web page."""

from __future__ import annotations


def foreign_content(head: bytes) -> str | None:
    """Return what a file that begins with `head` is instead, and the remedy; None if unknown.

    The words complete "FILE ...".
    """
    if not head.strip(b"\0"):
        return "holds no bytes, or zeros alone; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; fetch the file itself with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, as a failed download leaves it; fetch it again"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; unpack it with gunzip"
    return None
