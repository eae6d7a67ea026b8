"""The architecture page names files that there are."""

import re

import pytest

from tests.paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted({name for name in re.findall(r"`([a-z_]+(?:/[a-z_]*)+(?:\.py)?)`", PAGE)})


def test_the_page_names_files():
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_is_there(name):
    assert (ROOT / "supersam" / name).exists() or (ROOT / name).exists()
