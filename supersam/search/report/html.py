"""HTML as text, escaped: a page that needs nothing but itself, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1.2rem 4rem; background: #fff;
  color: #1f2933;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid #e4e7eb; }
p, figcaption { max-width: 46rem; }
figure { margin: 1rem 0; }
figcaption { color: #52606d; font-size: .88rem; }
img, svg { width: 100%; max-width: 42rem; height: auto; }
.wide { overflow-x: auto; margin: .8rem 0; }
.drawings { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.drawings figure { max-width: 100%; }
.drawings svg { max-width: none; }
.masks { min-width: 40rem; }
.masks .heads { display: flex; font-size: .85rem; color: #52606d; text-align: center; }
.masks .heads span { flex: 1; padding: .2rem; overflow-wrap: anywhere; }
.masks img { width: 100%; max-width: none; image-rendering: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #e4e7eb;
  white-space: nowrap; }
th { color: #52606d; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { white-space: nowrap; color: #52606d; }
.warning { border-left: 4px solid #c2410c; background: #fff7ed; padding: .5rem .9rem;
  max-width: 46rem; }
code { font-size: .92em; overflow-wrap: anywhere; }
"""


class Markup(str):
    """Text that is HTML already; every other string is escaped."""


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element. Attributes are escaped too; `class_` is `class`."""
    listed = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{listed}>{''.join(map(_text, children))}</{name}>")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table with a row of names, scrolling by itself where the screen is narrow."""
    names = tag("tr", *(tag("th", name) for name in head))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", names, *body), class_="wide")


def facts(rows: Sequence[tuple[str, str]]) -> Markup:
    """A table of names and what they are."""
    body = (tag("tr", tag("td", name), tag("td", value)) for name, value in rows)
    return tag("table", *body, class_="facts")


def picture(file: Path, *, alt: str) -> Markup:
    """A PNG or SVG file, put into the page."""
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[file.suffix]
    data = base64.b64encode(file.read_bytes()).decode()
    return Markup(f'<img src="data:{kind};base64,{data}" alt="{escape(alt)}">')


def page(title: str, *parts: str) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(map(_text, (tag("h1", title), *parts)))
        + "\n</body>\n</html>\n"
    )


def _text(child: str) -> str:
    return child if isinstance(child, Markup) else escape(child)
