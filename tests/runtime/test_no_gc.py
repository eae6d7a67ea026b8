"""No search for garbage while modules are imported, and searches as ever afterwards."""

import gc
import weakref

import pytest

from supersam.runtime.process import no_gc_while_importing


class Node:
    """Refers to itself: only a search for garbage finds it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_is_searched_within_and_what_is_made_there_never():
    before = collections()
    with no_gc_while_importing():
        made = [[] for _ in range(100_000)]
        assert collections() == before
    assert not any(found is made for found in gc.get_objects())


def test_garbage_of_later_is_found():
    with no_gc_while_importing():
        pass
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None


@pytest.mark.parametrize("searched", [True, False])
def test_it_is_afterwards_as_before_be_it_after_an_error(searched):
    (gc.enable if searched else gc.disable)()
    try:
        with pytest.raises(ImportError), no_gc_while_importing():
            raise ImportError("no such module")
        assert gc.isenabled() == searched
    finally:
        gc.enable()
