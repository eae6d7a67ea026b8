"""Attention with decomposed relative position as fused GPU kernels, forward and backward.

Nothing of the size of the scores is ever in memory, and no gradient is summed by atomic additions:
results are the same in every run. The online softmax and the two backward passes are those of
FlashAttention-2 (Dao, arXiv 2307.08691); windows and position terms are new here. A tile of keys is
whole rows of a window, so that within it the row term is one number per query (global attention,
where a tile is one row) and the column term the same for every tile: it is read once.

`launch` states the tensors' shapes and starts these kernels.
"""

import triton
import triton.language as tl

from supersam.model.kernels.tiles import (
    column_tile,
    keys_of_tile,
    load_keys,
    load_part,
    row_choice,
    row_terms_tile,
    store_part,
    store_sum,
    tokens_of,
    window_of,
)


@triton.jit
def forward(
    qkv, padding, terms, mixed, lse, heads,
    GRID: tl.constexpr, SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries against all keys."""
    N: tl.constexpr = GRID * GRID
    PADDED: tl.constexpr = GRID % SIDE != 0
    LOG2E: tl.constexpr = 1.4426950408889634
    EXACT: tl.constexpr = COLUMNS == SIDE and SIDE % ROWS == 0
    scale = LOG2E / tl.sqrt(D * 1.0)
    TILES: tl.constexpr = (SIDE * SIDE + QUERIES - 1) // QUERIES
    first, item = tl.program_id(0) % TILES * QUERIES, tl.program_id(0) // TILES
    batch, head, top, left, rows, columns = window_of(item, heads, GRID, SIDE)
    if first >= rows * columns:
        return
    stride = heads * 3 * D
    q_start = qkv + batch * N * stride + head * 3 * D
    k_start, v_start = q_start + D, q_start + 2 * D
    k_padding, v_padding = padding + (head * 3 + 1) * D, padding + (head * 3 + 2) * D
    terms += (batch * N * heads + head) * 2 * PITCH

    places = first + tl.arange(0, QUERIES)
    valid = places < rows * columns
    queries = tokens_of(places, top, left, columns, GRID, SIDE)
    q0 = load_part(q_start, queries, valid, stride, 0, D0, D)
    if D1 > 0:
        q1 = load_part(q_start, queries, valid, stride, D0, D1, D)
    by_column = column_tile(terms, queries, valid, heads, PITCH, ROWS, COLUMNS)
    by_column = by_column.to(tl.float32) * LOG2E
    if ROWS == 1:
        row_place = terms + queries * (heads * 2 * PITCH)
        next_row = tl.load(row_place, mask=valid, other=0.0)
    else:
        row_terms = row_terms_tile(terms, queries, valid, heads, PITCH, COLUMNS)

    most = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        out1 = tl.zeros([QUERIES, D1], tl.float32)
    for tile in range(0, (SIDE + ROWS - 1) // ROWS):
        key_row, keys, exists, inside = keys_of_tile(tile, top, left, GRID, SIDE, ROWS, COLUMNS)
        k0 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, 0, D0, D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        if D1 > 0:
            k1 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, D0, D1, D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        if ROWS == 1:
            bias = by_column
            by_row = next_row.to(tl.float32) * LOG2E  # of all these keys: added to their sums alone
            next_row = tl.load(row_place + tile + 1, mask=valid & (tile + 1 < SIDE), other=0.0)
        else:
            choice = row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = by_column + tl.dot(row_terms, choice, input_precision=PRECISION) * LOG2E
            by_row = tl.zeros([QUERIES], tl.float32)
        scores = scores * scale + bias
        if not EXACT:
            scores = tl.where(exists[None, :], scores, -float("inf"))
        new_most = tl.maximum(most, tl.max(scores, 1) + by_row)
        weights = tl.exp2(scores - (new_most - by_row)[:, None])
        shrink = tl.exp2(most - new_most)
        total = total * shrink + tl.sum(weights, 1)
        most = new_most
        v0 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, 0, D0, D)
        weights = weights.to(v0.dtype)
        out0 = tl.dot(weights, v0, out0 * shrink[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, D0, D1, D)
            out1 = tl.dot(weights, v1, out1 * shrink[:, None], input_precision=PRECISION)

    mixed += (batch * N * heads + head) * D
    store_part(mixed, queries, valid, heads * D, out0 / total[:, None], 0, D0, D)
    if D1 > 0:
        store_part(mixed, queries, valid, heads * D, out1 / total[:, None], D0, D1, D)
    tl.store(lse + (batch * heads + head) * N + queries, most + tl.log2(total), mask=valid)


@triton.jit
def backward_queries(
    qkv, padding, terms, mixed, grad, lse, delta, d_qkv, d_terms, heads,
    GRID: tl.constexpr, SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries and of its position terms, from all keys."""
    N: tl.constexpr = GRID * GRID
    PADDED: tl.constexpr = GRID % SIDE != 0
    LOG2E: tl.constexpr = 1.4426950408889634
    EXACT: tl.constexpr = COLUMNS == SIDE and SIDE % ROWS == 0
    plain_scale = 1.0 / tl.sqrt(D * 1.0)
    TILES: tl.constexpr = (SIDE * SIDE + QUERIES - 1) // QUERIES
    first, item = tl.program_id(0) % TILES * QUERIES, tl.program_id(0) // TILES
    batch, head, top, left, rows, columns = window_of(item, heads, GRID, SIDE)
    if first >= rows * columns:
        return
    stride = heads * 3 * D
    q_offset = batch * N * stride + head * 3 * D
    k_start, v_start = qkv + q_offset + D, qkv + q_offset + 2 * D
    k_padding, v_padding = padding + (head * 3 + 1) * D, padding + (head * 3 + 2) * D
    terms += (batch * N * heads + head) * 2 * PITCH
    d_terms += (batch * N * heads + head) * 2 * PITCH

    places = first + tl.arange(0, QUERIES)
    valid = places < rows * columns
    queries = tokens_of(places, top, left, columns, GRID, SIDE)
    out_offset = (batch * N * heads + head) * D
    q0 = load_part(qkv + q_offset, queries, valid, stride, 0, D0, D)
    g0 = load_part(grad + out_offset, queries, valid, heads * D, 0, D0, D)
    m0 = load_part(mixed + out_offset, queries, valid, heads * D, 0, D0, D)
    dots = tl.sum(g0.to(tl.float32) * m0.to(tl.float32), 1)
    if D1 > 0:
        q1 = load_part(qkv + q_offset, queries, valid, stride, D0, D1, D)
        g1 = load_part(grad + out_offset, queries, valid, heads * D, D0, D1, D)
        m1 = load_part(mixed + out_offset, queries, valid, heads * D, D0, D1, D)
        dots += tl.sum(g1.to(tl.float32) * m1.to(tl.float32), 1)
    numbers = (batch * heads + head) * N + queries
    tl.store(delta + numbers, dots, mask=valid)
    denominator = tl.load(lse + numbers, mask=valid, other=float("inf"))

    by_column = column_tile(terms, queries, valid, heads, PITCH, ROWS, COLUMNS)
    by_column = by_column.to(tl.float32) * LOG2E
    if ROWS == 1:
        row_place = terms + queries * (heads * 2 * PITCH)
        next_row = tl.load(row_place, mask=valid, other=0.0)
    else:
        row_terms = row_terms_tile(terms, queries, valid, heads, PITCH, COLUMNS)
        row_sums = tl.zeros([QUERIES, COLUMNS], tl.float32)
    column_sums = tl.zeros([QUERIES, ROWS * COLUMNS], tl.float32)
    dq0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        dq1 = tl.zeros([QUERIES, D1], tl.float32)
    for tile in range(0, (SIDE + ROWS - 1) // ROWS):
        key_row, keys, exists, inside = keys_of_tile(tile, top, left, GRID, SIDE, ROWS, COLUMNS)
        k0 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, 0, D0, D)
        v0 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, 0, D0, D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        d_weights = tl.dot(g0, tl.trans(v0), input_precision=PRECISION)
        if D1 > 0:
            k1 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, D0, D1, D)
            v1 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, D0, D1, D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
            d_weights = tl.dot(g1, tl.trans(v1), d_weights, input_precision=PRECISION)
        if ROWS == 1:
            bias = by_column
            shift = denominator - next_row.to(tl.float32) * LOG2E
            next_row = tl.load(row_place + tile + 1, mask=valid & (tile + 1 < SIDE), other=0.0)
        else:
            choice = row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = by_column + tl.dot(row_terms, choice, input_precision=PRECISION) * LOG2E
            shift = denominator
        scores = scores * (plain_scale * LOG2E) + bias
        weights = tl.exp2(scores - shift[:, None])
        if not EXACT:
            weights = tl.where(exists[None, :], weights, 0.0)
        d_scores = weights * (d_weights - dots[:, None])
        column_sums += d_scores
        rounded = d_scores.to(k0.dtype)
        dq0 = tl.dot(rounded, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(rounded, k1, dq1, input_precision=PRECISION)
        if ROWS == 1:
            place = d_terms + queries * (heads * 2 * PITCH) + tile
            tl.store(place, tl.sum(d_scores, 1).to(d_terms.dtype.element_ty), mask=valid)
        else:
            choice = row_choice(key_row, k0.dtype, COLUMNS)
            row_sums = tl.dot(rounded, tl.trans(choice), row_sums, input_precision=PRECISION)

    store_part(d_qkv + q_offset, queries, valid, stride, dq0 * plain_scale, 0, D0, D)
    if D1 > 0:
        store_part(d_qkv + q_offset, queries, valid, stride, dq1 * plain_scale, D0, D1, D)
    if ROWS > 1:
        store_part(d_terms, queries, valid, heads * 2 * PITCH, row_sums, 0, COLUMNS, PITCH)
        column_sums = tl.sum(tl.reshape(column_sums, [QUERIES, ROWS, COLUMNS]), 1)
    d_terms += PITCH
    store_part(d_terms, queries, valid, heads * 2 * PITCH, column_sums, 0, COLUMNS, PITCH)


@triton.jit
def backward_keys(
    qkv, padding, terms, grad, lse, delta, d_qkv, d_padding, heads,
    GRID: tl.constexpr, SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, from all queries. Tiles are (keys, queries) here."""
    N: tl.constexpr = GRID * GRID
    PADDED: tl.constexpr = GRID % SIDE != 0
    LOG2E: tl.constexpr = 1.4426950408889634
    plain_scale = 1.0 / tl.sqrt(D * 1.0)
    TILES: tl.constexpr = (SIDE + ROWS - 1) // ROWS
    tile, item = tl.program_id(0) % TILES, tl.program_id(0) // TILES
    batch, head, top, left, rows, columns = window_of(item, heads, GRID, SIDE)
    stride = heads * 3 * D
    q_offset = batch * N * stride + head * 3 * D
    k_start, v_start = qkv + q_offset + D, qkv + q_offset + 2 * D
    k_padding, v_padding = padding + (head * 3 + 1) * D, padding + (head * 3 + 2) * D
    grad += (batch * N * heads + head) * D
    terms += (batch * N * heads + head) * 2 * PITCH
    lse += (batch * heads + head) * N
    delta += (batch * heads + head) * N

    key_row, keys, exists, inside = keys_of_tile(tile, top, left, GRID, SIDE, ROWS, COLUMNS)
    k0 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, 0, D0, D)
    v0 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, 0, D0, D)
    dk0 = tl.zeros([ROWS * COLUMNS, D0], tl.float32)
    dv0 = tl.zeros([ROWS * COLUMNS, D0], tl.float32)
    if D1 > 0:
        k1 = load_keys(k_start, keys, inside, stride, k_padding, PADDED, D0, D1, D)
        v1 = load_keys(v_start, keys, inside, stride, v_padding, PADDED, D0, D1, D)
        dk1 = tl.zeros([ROWS * COLUMNS, D1], tl.float32)
        dv1 = tl.zeros([ROWS * COLUMNS, D1], tl.float32)
    for first in range(0, rows * columns, QUERIES):
        places = first + tl.arange(0, QUERIES)
        valid = places < rows * columns
        queries = tokens_of(places, top, left, columns, GRID, SIDE)
        q0 = load_part(qkv + q_offset, queries, valid, stride, 0, D0, D)
        g0 = load_part(grad, queries, valid, heads * D, 0, D0, D)
        scores = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)
        d_weights = tl.dot(v0, tl.trans(g0), input_precision=PRECISION)
        if D1 > 0:
            q1 = load_part(qkv + q_offset, queries, valid, stride, D0, D1, D)
            g1 = load_part(grad, queries, valid, heads * D, D0, D1, D)
            scores = tl.dot(k1, tl.trans(q1), scores, input_precision=PRECISION)
            d_weights = tl.dot(v1, tl.trans(g1), d_weights, input_precision=PRECISION)
        by_column = column_tile(terms, queries, valid, heads, PITCH, ROWS, COLUMNS)
        if ROWS == 1:
            place = terms + queries * (heads * 2 * PITCH) + tile
            row = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            bias = tl.trans(by_column).to(tl.float32) + row[None, :]
        else:
            row_terms = row_terms_tile(terms, queries, valid, heads, PITCH, COLUMNS)
            choice = row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = tl.trans(by_column).to(tl.float32) + tl.dot(
                tl.trans(choice), tl.trans(row_terms), input_precision=PRECISION
            )
        denominator = tl.load(lse + queries, mask=valid, other=float("inf"))
        dots = tl.load(delta + queries, mask=valid, other=0.0)
        scores = (scores * plain_scale + bias) * LOG2E
        weights = tl.exp2(scores - denominator[None, :])
        d_scores = (weights * (d_weights - dots[None, :])).to(q0.dtype)
        weights = weights.to(g0.dtype)
        dv0 = tl.dot(weights, g0, dv0, input_precision=PRECISION)
        dk0 = tl.dot(d_scores, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(weights, g1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(d_scores, q1, dk1, input_precision=PRECISION)

    dk0 *= plain_scale
    dk_start, dv_start = d_qkv + q_offset + D, d_qkv + q_offset + 2 * D
    store_part(dk_start, keys, inside, stride, dk0, 0, D0, D)
    store_part(dv_start, keys, inside, stride, dv0, 0, D0, D)
    if D1 > 0:
        dk1 *= plain_scale
        store_part(dk_start, keys, inside, stride, dk1, D0, D1, D)
        store_part(dv_start, keys, inside, stride, dv1, D0, D1, D)
    if PADDED:
        beyond = exists & (inside == 0)
        d_padding += tl.program_id(0).to(tl.int64) * 2 * D
        store_sum(d_padding, dk0, beyond, 0, D0, D)
        store_sum(d_padding + D, dv0, beyond, 0, D0, D)
        if D1 > 0:
            store_sum(d_padding, dk1, beyond, D0, D1, D)
            store_sum(d_padding + D, dv1, beyond, D0, D1, D)
