"""How much memory an evaluator takes for the outputs of layers."""

from __future__ import annotations

import torch

from supersam.runtime.memory import free_bytes
from supersam.search.command import describe_search
from supersam.search.evaluator import SubnetEvaluator
from supersam.search.inputs import find_inputs
from supersam.search.prefix import cache_bytes, generation_bytes
from supersam.space import resolve_shape
from tests.search.tiny_search import tiny_search

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken(run, tmp_path):
    asked, shape = tiny_search(run, tmp_path, cache_gib=0.5), resolve_shape(run.model)
    assert cache_bytes(asked, shape, images=6, device=CPU, sharers=2) == 2**29


def test_by_itself_a_search_takes_what_a_generation_fills_or_a_part_of_what_is_free(run, tmp_path):
    asked, shape = tiny_search(run, tmp_path), resolve_shape(run.model)
    needed = generation_bytes(asked, shape, images=6)
    assert needed == 4 * (4 * 4 * 32) * 4 * asked.population * 6  # grid, width, depth
    assert cache_bytes(asked, shape, images=6, device=CPU) == needed
    half, whole = (cache_bytes(asked, shape, images=10**9, device=CPU, sharers=n) for n in (2, 1))
    assert 0.4 * whole < half < 0.6 * whole
    assert whole < 0.3 * free_bytes()


def test_outputs_of_every_layer_of_a_generation_fit(run, tmp_path):
    asked = tiny_search(run, tmp_path)
    objective = SubnetEvaluator(asked, find_inputs(asked).source)
    assert objective.cache_bytes == generation_bytes(asked, resolve_shape(run.model), images=6)


def test_a_dry_run_says_how_much_and_touches_nothing(run, tmp_path):
    told = describe_search(tiny_search(run, tmp_path / "search"))
    needed = generation_bytes(tiny_search(run, tmp_path), resolve_shape(run.model), images=6)
    assert f"{needed / 2**30:.2g} GiB of layers' outputs" in told
    assert "up to 0.5 GiB" in describe_search(tiny_search(run, tmp_path / "search", cache_gib=0.5))
    assert not (tmp_path / "search").exists()
