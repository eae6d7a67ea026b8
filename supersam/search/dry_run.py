"""What a search would be, in words. No torch."""

from __future__ import annotations

from supersam.config import SearchRun
from supersam.search.folder import SearchInputs, check_folder, find_inputs
from supersam.search.kept import generation_bytes


def describe_search(asked: SearchRun) -> str:
    """What would be searched, for `--dry-run`. Touches no file. Raises UserError."""
    basis = find_inputs(asked)
    check_folder(asked, basis)
    lines = [
        f"run {asked.run}, checkpoint at step {basis.source.step} ({basis.weights})",
        f"search space: {basis.space.num_subnets():,} subnets",
        f"evaluation data: {', '.join(map(str, basis.data_folders))}; {basis.seen.detail}",
        f"{asked.trials} trials by {asked.searcher}, objectives {', '.join(asked.objectives)}, "
        f"constraints {', '.join(map(str, asked.constraints)) or 'none'}",
        f"kept between subnets, an evaluator: {_kept(asked, basis)}",
        f"folder: {asked.folder}",
    ]
    return "\n".join(lines)


def _kept(asked: SearchRun, basis: SearchInputs) -> str:
    if asked.cache_gib is not None:
        return f"up to {asked.cache_gib:g} GiB of layers' outputs"
    if asked.protocol.images is None:
        return "a quarter of its free memory, for layers' outputs"
    full = generation_bytes(asked, basis.space.shape, asked.protocol.images) / 2**30
    return f"{full:.2g} GiB of layers' outputs, or a quarter of its free memory where that is less"
