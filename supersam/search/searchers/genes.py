"""A subnet as a flat list of named choices, for tuners of other libraries.

Apart from each of them: OpenTuner and Optuna share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from supersam.space import SearchSpace, SubnetSpec


def gene_choices(space: SearchSpace) -> dict[str, int]:
    """Number of choices of each gene that has more than one; genes are numbered from 0."""
    counts = {"embed": len(space.embed_dims), "resolution": len(space.resolution_genes)}
    for layer, probability in enumerate(space.removal):
        counts[f"keep{layer}"] = 2 if probability > 0 else 1
        counts[f"width{layer}"] = len(space.mlp_widths[layer])
        counts[f"heads{layer}"] = len(space.heads[layer])
    return {name: count for name, count in counts.items() if count > 1}


def spec_of(genes: Mapping[str, int], space: SearchSpace) -> SubnetSpec:
    """The subnet of some genes; what is not named is the only choice, or stays."""
    layers = tuple(i for i in range(space.shape.depth) if genes.get(f"keep{i}", 1) == 1)
    return SubnetSpec(
        layers=layers,
        mlp_widths=tuple(space.mlp_widths[i][genes.get(f"width{i}", 0)] for i in layers),
        heads=tuple(space.heads[i][genes.get(f"heads{i}", 0)] for i in layers),
        embed_dim=space.embed_dims[genes.get("embed", 0)],
        resolution=space.resolution_genes[genes.get("resolution", 0)],
    )


def genes_of(spec: SubnetSpec, space: SearchSpace) -> dict[str, int] | None:
    """The genes of a subnet, those of removed layers at 0; None where a width is not a choice."""
    genes = dict.fromkeys(gene_choices(space), 0)
    values: dict[str, tuple[int | None, Sequence[int | None]]] = {
        "embed": (spec.embed_dim, space.embed_dims),
        "resolution": (spec.resolution, space.resolution_genes),
    }
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        values[f"keep{layer}"] = (1, (0, 1))
        values[f"width{layer}"] = (width, space.mlp_widths[layer])
        values[f"heads{layer}"] = (heads, space.heads[layer])
    for name, (value, choices) in values.items():
        if value not in choices:
            return None
        if name in genes:
            genes[name] = choices.index(value)
    return genes
