"""A subnet as a drawing: its layers side by side, each as wide as it is. SVG as text."""

from __future__ import annotations

from html import escape

from supersam.space import EncoderShape, SubnetSpec

_COLUMN, _GAP, _TALL, _HEAD = 26, 6, 96, 5
_TOP, _LEFT = 8, 4
_MLP, _EMPTY, _LINE, _GREY, _HEADS = "#2f6f9f", "#eef2f6", "#9aa5b1", "#52606d", "#d97706"


def drawing_px(shape: EncoderShape) -> int:
    """Width of a drawing."""
    return 2 * _LEFT + shape.depth * (_COLUMN + _GAP)


def draw_subnet(spec: SubnetSpec, shape: EncoderShape, *, name: str) -> str:
    """SVG text. Bars are MLP widths, dots are attention heads, dashed outlines removed layers."""
    width = drawing_px(shape)
    columns = 3 if shape.num_heads > 8 else 2 if shape.num_heads > 4 else 1
    dots = -(-shape.num_heads // columns)
    height = _TOP + _TALL + 8 + dots * (_HEAD + 3) + 34
    genes = dict(zip(spec.layers, zip(spec.mlp_widths, spec.heads, strict=True), strict=True))
    parts = [
        _layer(layer, genes.get(layer), shape, columns=columns) for layer in range(shape.depth)
    ]
    note = f"residual width {spec.embed_dim} of {shape.embed_dim}"
    parts.append(_text(_LEFT, height - 3, note, anchor="start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" style="min-width:{0.75 * width:g}px" '
        f'role="img" font-family="sans-serif">'
        f"<title>{escape(name)}</title>{''.join(parts)}</svg>"
    )


def _layer(layer: int, genes: tuple[int, int] | None, shape: EncoderShape, *, columns: int) -> str:
    x = _LEFT + layer * (_COLUMN + _GAP)
    under = _TOP + _TALL + 8
    dots = -(-shape.num_heads // columns) * (_HEAD + 3)
    label = f"{layer}" + ("g" if layer in shape.global_layers else "")
    text = _text(x + _COLUMN / 2, under + dots + 10, label, anchor="middle")
    if genes is None:
        return _rect(x, _TOP, _TALL, fill="none", dash=True) + text
    width, heads = genes
    tall = _TALL * width / shape.mlp_width
    bars = _rect(x, _TOP, _TALL, fill=_EMPTY) + _rect(x, _TOP + _TALL - tall, tall, fill=_MLP)
    hint = f"<title>layer {layer}: MLP width {width} of {shape.mlp_width}, {heads} heads</title>"
    return f"<g>{hint}{bars}{_heads(x, under, heads, shape.num_heads, columns)}</g>{text}"


def _heads(x: float, y: float, heads: int, full: int, columns: int) -> str:
    step = _HEAD + 3
    left = x + (_COLUMN - columns * step + 3) / 2
    return "".join(
        f'<rect x="{left + i % columns * step:g}" y="{y + i // columns * step:g}" width="{_HEAD}" '
        f'height="{_HEAD}" rx="1" fill="{_HEADS if i < heads else _EMPTY}"/>'
        for i in range(full)
    )


def _rect(x: float, y: float, height: float, *, fill: str, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dash else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{_COLUMN}" height="{height:g}" rx="2" fill="{fill}" '
        f'stroke="{_LINE}"{dashes}/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="10" fill="{_GREY}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
