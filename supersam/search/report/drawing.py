"""A subnet as a drawing: where each layer's bars and dots lie. `subnet.svg` makes the picture."""

from __future__ import annotations

from dataclasses import dataclass

from supersam.space import EncoderShape, SubnetSpec

_COLUMN, _GAP, _TALL, _HEAD = 26, 6, 96, 5
_TOP, _LEFT = 8, 4


@dataclass(frozen=True)
class Head:
    """An attention head, at its place in px."""

    x: float
    y: float
    is_kept: bool


@dataclass(frozen=True)
class Column:
    """One layer of the supernet."""

    x: float
    label: str
    """Its number; g marks global attention."""
    hint: str
    is_removed: bool
    mlp: float
    """Height of the part of the MLP that is kept."""
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class SubnetDrawing:
    """Bars are MLP widths, dots attention heads, dashed outlines removed layers. All in px."""

    name: str
    caption: str
    note: str
    columns: tuple[Column, ...]
    width: int
    height: int
    labels: float
    """Height of the labels below the columns."""
    top: float = _TOP
    tall: float = _TALL
    bar: float = _COLUMN
    head: float = _HEAD


def draw_subnet(
    spec: SubnetSpec, shape: EncoderShape, *, name: str, caption: str = ""
) -> SubnetDrawing:
    """The drawing of a subnet."""
    across = 3 if shape.num_heads > 8 else 2 if shape.num_heads > 4 else 1
    dots = -(-shape.num_heads // across) * (_HEAD + 3)
    under = _TOP + _TALL + 8
    kept = dict(zip(spec.layers, zip(spec.mlp_widths, spec.heads, strict=True), strict=True))
    return SubnetDrawing(
        name=name,
        caption=caption,
        note=f"residual width {spec.embed_dim} of {shape.embed_dim}"
        + (
            "" if spec.resolution is None else f", input {spec.resolution} of {shape.image_size} px"
        ),
        columns=tuple(_column(i, kept.get(i), shape, across) for i in range(shape.depth)),
        width=2 * _LEFT + shape.depth * (_COLUMN + _GAP),
        height=under + dots + 34,
        labels=under + dots + 10,
    )


def _column(layer: int, kept: tuple[int, int] | None, shape: EncoderShape, across: int) -> Column:
    x = _LEFT + layer * (_COLUMN + _GAP)
    width, heads = kept or (0, 0)
    of_layer = f"layer {layer}: MLP width {width} of {shape.mlp_width}, {heads} heads"
    step = _HEAD + 3
    left, top = x + (_COLUMN - across * step + 3) / 2, _TOP + _TALL + 8
    return Column(
        x=x,
        label=f"{layer}" + ("g" if layer in shape.global_layers else ""),
        hint=f"layer {layer}: removed" if kept is None else of_layer,
        is_removed=kept is None,
        mlp=round(_TALL * width / shape.mlp_width, 2),
        heads=tuple(
            Head(left + i % across * step, top + i // across * step, i < heads)
            for i in range(shape.num_heads)
        ),
    )
