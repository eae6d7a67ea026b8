"""Numbers as people say them."""

import pytest

from supersam.runtime.table import count, duration


@pytest.mark.parametrize(
    ("number", "noun", "plural", "expected"),
    [
        (1, "image", None, "1 image"),
        (0, "image", None, "0 images"),
        (1707, "image", None, "1,707 images"),
        (2, "search", "searches", "2 searches"),
        (1, "search", "searches", "1 search"),
    ],
)
def test_a_count_has_its_noun(number, noun, plural, expected):
    assert count(number, noun, plural) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (42, "42 s"), (180, "3 min"), (9000, "2.5 h"), (345600, "4.0 d")],
)
def test_a_duration_has_the_unit_that_people_use(seconds, expected):
    assert duration(seconds) == expected
