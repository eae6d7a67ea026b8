"""The terms that relative positions add to the scores of attention, as fused GPU kernels.

A program takes queries at one place of a window, of many windows, images and heads: all have the
same position vectors, so that their terms are two small matrix products and each query is read
once. Source: MViTv2 (arXiv 2112.01526), equation 4.

`launch` states the tensors' shapes and starts these kernels.
"""

import triton
import triton.language as tl

from supersam.model.kernels.tiles import load_part, store_part


@triton.jit
def _queries_at(row, column, first, items, heads, GRID: tl.constexpr, SIDE: tl.constexpr,
                ITEMS: tl.constexpr):  # fmt: skip
    """Of some heads of windows, counted from `first`: each one's query, and whether it is one."""
    COUNT: tl.constexpr = (GRID + SIDE - 1) // SIDE
    item = first + tl.arange(0, ITEMS)
    head, place = item % heads, item // heads
    image, window = (place // (COUNT * COUNT)).to(tl.int64), place % (COUNT * COUNT)
    y, x = window // COUNT * SIDE + row, window % COUNT * SIDE + column
    valid = (item < items) & (y < GRID) & (x < GRID)
    return ((image * GRID + y) * GRID + x) * heads + head, valid


@triton.jit
def terms_forward(
    qkv, rel_pos_h, rel_pos_w, terms, items, heads,
    GRID: tl.constexpr, SIDE: tl.constexpr, PITCH: tl.constexpr, COLUMNS: tl.constexpr,
    ITEMS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Row and column terms of ITEMS queries at one place."""
    row, column = tl.program_id(0) // SIDE, tl.program_id(0) % SIDE
    queries, valid = _queries_at(
        row, column, tl.program_id(1) * ITEMS, items, heads, GRID, SIDE, ITEMS
    )
    keys = tl.arange(0, COLUMNS)
    by_row = row + SIDE - 1 - keys  # distances, as rows of the tables
    by_column = column + SIDE - 1 - keys
    q0 = load_part(qkv, queries, valid, 3 * D, 0, D0, D)
    h0 = load_part(rel_pos_h, by_row, keys < SIDE, D, 0, D0, D)
    w0 = load_part(rel_pos_w, by_column, keys < SIDE, D, 0, D0, D)
    row_terms = tl.dot(q0, tl.trans(h0), input_precision=PRECISION)
    column_terms = tl.dot(q0, tl.trans(w0), input_precision=PRECISION)
    if D1 > 0:
        q1 = load_part(qkv, queries, valid, 3 * D, D0, D1, D)
        h1 = load_part(rel_pos_h, by_row, keys < SIDE, D, D0, D1, D)
        w1 = load_part(rel_pos_w, by_column, keys < SIDE, D, D0, D1, D)
        row_terms = tl.dot(q1, tl.trans(h1), row_terms, input_precision=PRECISION)
        column_terms = tl.dot(q1, tl.trans(w1), column_terms, input_precision=PRECISION)
    store_part(terms, queries, valid, 2 * PITCH, row_terms, 0, COLUMNS, PITCH)
    store_part(terms + PITCH, queries, valid, 2 * PITCH, column_terms, 0, COLUMNS, PITCH)


@triton.jit
def terms_backward(
    qkv, rel_pos_h, rel_pos_w, d_terms, d_qkv, d_rel, items, heads,
    GRID: tl.constexpr, SIDE: tl.constexpr, PITCH: tl.constexpr, COLUMNS: tl.constexpr,
    ITEMS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of queries at one place, and sums those of its position vectors."""
    row, column = tl.program_id(0) // SIDE, tl.program_id(0) % SIDE
    keys = tl.arange(0, COLUMNS)
    by_row = row + SIDE - 1 - keys  # distances, as rows of the tables
    by_column = column + SIDE - 1 - keys
    h0 = load_part(rel_pos_h, by_row, keys < SIDE, D, 0, D0, D)
    w0 = load_part(rel_pos_w, by_column, keys < SIDE, D, 0, D0, D)
    dh0 = tl.zeros([COLUMNS, D0], tl.float32)
    dw0 = tl.zeros([COLUMNS, D0], tl.float32)
    if D1 > 0:
        h1 = load_part(rel_pos_h, by_row, keys < SIDE, D, D0, D1, D)
        w1 = load_part(rel_pos_w, by_column, keys < SIDE, D, D0, D1, D)
        dh1 = tl.zeros([COLUMNS, D1], tl.float32)
        dw1 = tl.zeros([COLUMNS, D1], tl.float32)
    for first in range(tl.program_id(1) * ITEMS, items, tl.num_programs(1) * ITEMS):
        queries, valid = _queries_at(row, column, first, items, heads, GRID, SIDE, ITEMS)
        d_row = load_part(d_terms, queries, valid, 2 * PITCH, 0, COLUMNS, SIDE)
        d_column = load_part(d_terms + PITCH, queries, valid, 2 * PITCH, 0, COLUMNS, SIDE)
        q0 = load_part(qkv, queries, valid, 3 * D, 0, D0, D)
        dq0 = load_part(d_qkv, queries, valid, 3 * D, 0, D0, D).to(tl.float32)
        dq0 = tl.dot(d_row, h0, dq0, input_precision=PRECISION)
        dq0 = tl.dot(d_column, w0, dq0, input_precision=PRECISION)
        store_part(d_qkv, queries, valid, 3 * D, dq0, 0, D0, D)
        dh0 = tl.dot(tl.trans(d_row), q0, dh0, input_precision=PRECISION)
        dw0 = tl.dot(tl.trans(d_column), q0, dw0, input_precision=PRECISION)
        if D1 > 0:
            q1 = load_part(qkv, queries, valid, 3 * D, D0, D1, D)
            dq1 = load_part(d_qkv, queries, valid, 3 * D, D0, D1, D).to(tl.float32)
            dq1 = tl.dot(d_row, h1, dq1, input_precision=PRECISION)
            dq1 = tl.dot(d_column, w1, dq1, input_precision=PRECISION)
            store_part(d_qkv, queries, valid, 3 * D, dq1, D0, D1, D)
            dh1 = tl.dot(tl.trans(d_row), q1, dh1, input_precision=PRECISION)
            dw1 = tl.dot(tl.trans(d_column), q1, dw1, input_precision=PRECISION)
    d_rel += (tl.program_id(1).to(tl.int64) * SIDE * SIDE + tl.program_id(0)) * 2 * SIDE * D
    store_part(d_rel, keys, keys < SIDE, D, dh0, 0, D0, D)
    store_part(d_rel + SIDE * D, keys, keys < SIDE, D, dw0, 0, D0, D)
    if D1 > 0:
        store_part(d_rel, keys, keys < SIDE, D, dh1, D0, D1, D)
        store_part(d_rel + SIDE * D, keys, keys < SIDE, D, dw1, D0, D1, D)
