from __future__ import annotations

import pytest

from tests.search.tiny_search import make_run, make_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder / "train", images=4, seed=0)
    make_shards(folder / "val", images=8, seed=1)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory, shards):
    return make_run(tmp_path_factory.mktemp("run") / "run", shards)
