"""What a search would be, in words. No torch."""

from __future__ import annotations

from supersam.config import SearchRun
from supersam.search.folder import check_folder
from supersam.search.inputs import SearchInputs, find_inputs
from supersam.search.prefix import generation_bytes


def describe_search(search: SearchRun) -> str:
    """What would be searched, for `--dry-run`. Touches no file. Raises UserError."""
    inputs = find_inputs(search)
    check_folder(search, inputs)
    lines = [
        f"run {search.run}, checkpoint at step {inputs.source.step} ({inputs.weights})",
        f"search space: {inputs.space.num_subnets():,} subnets",
        f"evaluation data: {inputs.selection}; {inputs.seen.detail}",
        _final(inputs),
        f"{search.trials} trials by {search.searcher}, objectives {', '.join(search.objectives)}, "
        f"constraints {', '.join(map(str, search.constraints)) or 'none'}",
        f"kept between subnets, an evaluator: {_kept(search, inputs)}",
        f"folder: {search.folder}",
    ]
    return "\n".join(lines)


def _final(inputs: SearchInputs) -> str:
    if inputs.final is None or inputs.final_seen is None:
        return "final data: none; --final-data or --final-share measures the front on other images"
    return f"final data: {inputs.final}; {inputs.final_seen.detail}"


def _kept(search: SearchRun, inputs: SearchInputs) -> str:
    if search.cache_gib is not None:
        return f"up to {search.cache_gib:g} GiB of layers' outputs"
    if search.protocol.images is None:
        return "a quarter of its free memory, for layers' outputs"
    full = generation_bytes(search, inputs.space.shape, search.protocol.images) / 2**30
    return f"{full:.2g} GiB of layers' outputs, or a quarter of its free memory where that is less"
