"""Progress of long loops, where there is no terminal."""

import logging

from supersam.runtime.logging import shown


def test_every_item_passes_and_each_is_told_but_the_last(caplog):
    with caplog.at_level(logging.INFO):
        assert list(shown("abc", 3, what="scoring", unit="image", every_s=0.0)) == ["a", "b", "c"]
    assert [message.rpartition(",")[0] for message in caplog.messages] == [
        "scoring: 1 of 3 images",
        "scoring: 2 of 3 images",
    ]


def test_what_is_short_is_not_told(caplog):
    with caplog.at_level(logging.INFO):
        assert list(shown(range(9), 9, what="scoring", unit="image")) == list(range(9))
    assert caplog.messages == []
