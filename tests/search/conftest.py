from __future__ import annotations

import pytest

from tests.search.closed_form import ClosedForm
from tests.search.tiny_search import make_run, make_shards, search


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder / "train", images=4, seed=0)
    make_shards(folder / "val", images=8, seed=1)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory, shards):
    return make_run(tmp_path_factory.mktemp("run") / "run", shards)


@pytest.fixture(scope="session")
def undisturbed(run, tmp_path_factory):
    """A search that nothing interrupted."""
    return search(run, tmp_path_factory.mktemp("undisturbed") / "s")


@pytest.fixture
def closed_form(monkeypatch):
    """Searches in this process evaluate subnets by a formula."""
    monkeypatch.setattr("supersam.search.session.SubnetEvaluator", ClosedForm)
