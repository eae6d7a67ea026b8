"""Attention with decomposed relative position as fused GPU kernels, forward and backward.

Nothing of the size of the scores is ever in memory, and no gradient is summed by atomic additions:
results are the same in every run. The online softmax and the two backward passes are those of
FlashAttention-2 (Dao, arXiv 2307.08691); the position terms are new here. A tile of keys is whole
rows of the grid, so that within it the row term is one number a query (global attention, where a
tile is one row) and the column term the same for every tile: it is read once.

`triton_attention` names the tensors' shapes and launches these.
"""

import triton
import triton.language as tl


@triton.jit
def _load_part(start, rows, valid, row_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr,
               D: tl.constexpr):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of `rows`, zero where not valid or not below D."""
    channels = FIRST + tl.arange(0, WIDTH)
    places = start + rows[:, None] * row_stride + channels[None, :]
    return tl.load(places, mask=valid[:, None] & (channels < D)[None, :], other=0.0)


@triton.jit
def _store_part(start, rows, valid, row_stride, values, FIRST: tl.constexpr, WIDTH: tl.constexpr,
                D: tl.constexpr):  # fmt: skip
    channels = FIRST + tl.arange(0, WIDTH)
    places = start + rows[:, None] * row_stride + channels[None, :]
    values = values.to(start.dtype.element_ty)
    tl.store(places, values, mask=valid[:, None] & (channels < D)[None, :])


@triton.jit
def _keys_of_tile(tile, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row, token and validity of each slot of a tile of keys."""
    slots = tl.arange(0, ROWS * COLUMNS)
    row, column = tile * ROWS + slots // COLUMNS, slots % COLUMNS
    return row, row * SIDE + column, (row < SIDE) & (column < SIDE)


@triton.jit
def _column_tile(by_column, queries, valid, heads, SIDE: tl.constexpr, PITCH: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Column terms of a tile of queries for a tile of keys, the same for all tiles of keys."""
    column = tl.arange(0, ROWS * COLUMNS) % COLUMNS
    place = (queries % SIDE) * SIDE + queries // SIDE
    places = by_column + place[:, None] * (heads * PITCH) + column[None, :]
    return tl.load(places, mask=valid[:, None] & (column < PITCH)[None, :], other=0.0)


@triton.jit
def _row_terms(by_row, queries, valid, heads, PITCH: tl.constexpr, COLUMNS: tl.constexpr):
    """Row terms of a tile of queries for all rows of keys, (queries, COLUMNS)."""
    row = tl.arange(0, COLUMNS)
    places = by_row + queries[:, None] * (heads * PITCH) + row[None, :]
    return tl.load(places, mask=valid[:, None] & (row < PITCH)[None, :], other=0.0)


@triton.jit
def _row_choice(key_row, DTYPE: tl.constexpr, COLUMNS: tl.constexpr):
    """One where a key lies in a row: (COLUMNS, keys)."""
    return (tl.arange(0, COLUMNS)[:, None] == key_row[None, :]).to(DTYPE)


@triton.jit
def forward(
    qkv, by_row, by_column, mixed, lse, heads,
    SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries against all keys."""
    N: tl.constexpr = SIDE * SIDE
    LOG2E: tl.constexpr = 1.4426950408889634
    EXACT: tl.constexpr = COLUMNS == SIDE and SIDE % ROWS == 0
    scale = LOG2E / tl.sqrt(D * 1.0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    stride = heads * 3 * D
    q_start = qkv + batch * N * stride + head * 3 * D
    k_start, v_start = q_start + D, q_start + 2 * D
    by_row += (batch * N * heads + head) * PITCH
    by_column += (batch * N * heads + head) * PITCH

    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    valid = queries < N
    q0 = _load_part(q_start, queries, valid, stride, 0, D0, D)
    if D1 > 0:
        q1 = _load_part(q_start, queries, valid, stride, D0, D1, D)
    columns = _column_tile(by_column, queries, valid, heads, SIDE, PITCH, ROWS, COLUMNS)
    columns = columns.to(tl.float32) * LOG2E
    if ROWS == 1:
        row_place = by_row + queries * (heads * PITCH)
        next_row = tl.load(row_place, mask=valid, other=0.0)
    else:
        row_terms = _row_terms(by_row, queries, valid, heads, PITCH, COLUMNS)

    most = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        out1 = tl.zeros([QUERIES, D1], tl.float32)
    for tile in range(0, (SIDE + ROWS - 1) // ROWS):
        key_row, keys, exists = _keys_of_tile(tile, SIDE, ROWS, COLUMNS)
        k0 = _load_part(k_start, keys, exists, stride, 0, D0, D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        if D1 > 0:
            k1 = _load_part(k_start, keys, exists, stride, D0, D1, D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        if ROWS == 1:
            bias = columns + (next_row.to(tl.float32) * LOG2E)[:, None]
            next_row = tl.load(row_place + tile + 1, mask=valid & (tile + 1 < SIDE), other=0.0)
        else:
            choice = _row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = columns + tl.dot(row_terms, choice, input_precision=PRECISION) * LOG2E
        scores = scores * scale + bias
        if not EXACT:
            scores = tl.where(exists[None, :], scores, -float("inf"))
        new_most = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - new_most[:, None])
        shrink = tl.exp2(most - new_most)
        total = total * shrink + tl.sum(weights, 1)
        most = new_most
        v0 = _load_part(v_start, keys, exists, stride, 0, D0, D)
        weights = weights.to(v0.dtype)
        out0 = tl.dot(weights, v0, out0 * shrink[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = _load_part(v_start, keys, exists, stride, D0, D1, D)
            out1 = tl.dot(weights, v1, out1 * shrink[:, None], input_precision=PRECISION)

    mixed += (batch * N * heads + head) * D
    _store_part(mixed, queries, valid, heads * D, out0 / total[:, None], 0, D0, D)
    if D1 > 0:
        _store_part(mixed, queries, valid, heads * D, out1 / total[:, None], D0, D1, D)
    tl.store(lse + (batch * heads + head) * N + queries, most + tl.log2(total), mask=valid)


@triton.jit
def backward_queries(
    qkv, by_row, by_column, mixed, grad, lse, delta, d_qkv, d_row, d_column, heads,
    SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries and of its position terms, from all keys."""
    N: tl.constexpr = SIDE * SIDE
    LOG2E: tl.constexpr = 1.4426950408889634
    EXACT: tl.constexpr = COLUMNS == SIDE and SIDE % ROWS == 0
    plain_scale = 1.0 / tl.sqrt(D * 1.0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    stride = heads * 3 * D
    q_offset = batch * N * stride + head * 3 * D
    k_start, v_start = qkv + q_offset + D, qkv + q_offset + 2 * D
    term_offset = (batch * N * heads + head) * PITCH
    by_row += term_offset
    by_column += term_offset
    d_row += term_offset
    d_column += term_offset

    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    valid = queries < N
    out_offset = (batch * N * heads + head) * D
    q0 = _load_part(qkv + q_offset, queries, valid, stride, 0, D0, D)
    g0 = _load_part(grad + out_offset, queries, valid, heads * D, 0, D0, D)
    m0 = _load_part(mixed + out_offset, queries, valid, heads * D, 0, D0, D)
    dots = tl.sum(g0.to(tl.float32) * m0.to(tl.float32), 1)
    if D1 > 0:
        q1 = _load_part(qkv + q_offset, queries, valid, stride, D0, D1, D)
        g1 = _load_part(grad + out_offset, queries, valid, heads * D, D0, D1, D)
        m1 = _load_part(mixed + out_offset, queries, valid, heads * D, D0, D1, D)
        dots += tl.sum(g1.to(tl.float32) * m1.to(tl.float32), 1)
    numbers = (batch * heads + head) * N + queries
    tl.store(delta + numbers, dots, mask=valid)
    denominator = tl.load(lse + numbers, mask=valid, other=float("inf"))

    columns = _column_tile(by_column, queries, valid, heads, SIDE, PITCH, ROWS, COLUMNS)
    columns = columns.to(tl.float32) * LOG2E
    if ROWS == 1:
        row_place = by_row + queries * (heads * PITCH)
        next_row = tl.load(row_place, mask=valid, other=0.0)
    else:
        row_terms = _row_terms(by_row, queries, valid, heads, PITCH, COLUMNS)
        row_sums = tl.zeros([QUERIES, COLUMNS], tl.float32)
    column_sums = tl.zeros([QUERIES, ROWS * COLUMNS], tl.float32)
    dq0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        dq1 = tl.zeros([QUERIES, D1], tl.float32)
    for tile in range(0, (SIDE + ROWS - 1) // ROWS):
        key_row, keys, exists = _keys_of_tile(tile, SIDE, ROWS, COLUMNS)
        k0 = _load_part(k_start, keys, exists, stride, 0, D0, D)
        v0 = _load_part(v_start, keys, exists, stride, 0, D0, D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        d_weights = tl.dot(g0, tl.trans(v0), input_precision=PRECISION)
        if D1 > 0:
            k1 = _load_part(k_start, keys, exists, stride, D0, D1, D)
            v1 = _load_part(v_start, keys, exists, stride, D0, D1, D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
            d_weights = tl.dot(g1, tl.trans(v1), d_weights, input_precision=PRECISION)
        if ROWS == 1:
            bias = columns + (next_row.to(tl.float32) * LOG2E)[:, None]
            next_row = tl.load(row_place + tile + 1, mask=valid & (tile + 1 < SIDE), other=0.0)
        else:
            choice = _row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = columns + tl.dot(row_terms, choice, input_precision=PRECISION) * LOG2E
        scores = scores * (plain_scale * LOG2E) + bias
        weights = tl.exp2(scores - denominator[:, None])
        if not EXACT:
            weights = tl.where(exists[None, :], weights, 0.0)
        d_scores = weights * (d_weights - dots[:, None])
        column_sums += d_scores
        rounded = d_scores.to(k0.dtype)
        dq0 = tl.dot(rounded, k0, dq0, input_precision=PRECISION)
        if D1 > 0:
            dq1 = tl.dot(rounded, k1, dq1, input_precision=PRECISION)
        if ROWS == 1:
            place = d_row + queries * (heads * PITCH) + tile
            tl.store(place, tl.sum(d_scores, 1).to(d_row.dtype.element_ty), mask=valid)
        else:
            choice = _row_choice(key_row, k0.dtype, COLUMNS)
            row_sums = tl.dot(rounded, tl.trans(choice), row_sums, input_precision=PRECISION)

    _store_part(d_qkv + q_offset, queries, valid, stride, dq0 * plain_scale, 0, D0, D)
    if D1 > 0:
        _store_part(d_qkv + q_offset, queries, valid, stride, dq1 * plain_scale, D0, D1, D)
    if ROWS > 1:
        _store_part(d_row, queries, valid, heads * PITCH, row_sums, 0, COLUMNS, PITCH)
        column_sums = tl.sum(tl.reshape(column_sums, [QUERIES, ROWS, COLUMNS]), 1)
    place = (queries % SIDE) * SIDE + queries // SIDE
    _store_part(d_column, place, valid, heads * PITCH, column_sums, 0, COLUMNS, PITCH)


@triton.jit
def backward_keys(
    qkv, by_row, by_column, grad, lse, delta, d_qkv, heads,
    SIDE: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, from all queries. Tiles are (keys, queries) here."""
    N: tl.constexpr = SIDE * SIDE
    LOG2E: tl.constexpr = 1.4426950408889634
    plain_scale = 1.0 / tl.sqrt(D * 1.0)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    stride = heads * 3 * D
    q_offset = batch * N * stride + head * 3 * D
    grad += (batch * N * heads + head) * D
    by_row += (batch * N * heads + head) * PITCH
    by_column += (batch * N * heads + head) * PITCH
    lse += (batch * heads + head) * N
    delta += (batch * heads + head) * N

    key_row, keys, exists = _keys_of_tile(tl.program_id(0), SIDE, ROWS, COLUMNS)
    k0 = _load_part(qkv + q_offset + D, keys, exists, stride, 0, D0, D)
    v0 = _load_part(qkv + q_offset + 2 * D, keys, exists, stride, 0, D0, D)
    dk0 = tl.zeros([ROWS * COLUMNS, D0], tl.float32)
    dv0 = tl.zeros([ROWS * COLUMNS, D0], tl.float32)
    if D1 > 0:
        k1 = _load_part(qkv + q_offset + D, keys, exists, stride, D0, D1, D)
        v1 = _load_part(qkv + q_offset + 2 * D, keys, exists, stride, D0, D1, D)
        dk1 = tl.zeros([ROWS * COLUMNS, D1], tl.float32)
        dv1 = tl.zeros([ROWS * COLUMNS, D1], tl.float32)
    for first in range(0, N, QUERIES):
        queries = first + tl.arange(0, QUERIES)
        valid = queries < N
        q0 = _load_part(qkv + q_offset, queries, valid, stride, 0, D0, D)
        g0 = _load_part(grad, queries, valid, heads * D, 0, D0, D)
        scores = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)
        d_weights = tl.dot(v0, tl.trans(g0), input_precision=PRECISION)
        if D1 > 0:
            q1 = _load_part(qkv + q_offset, queries, valid, stride, D0, D1, D)
            g1 = _load_part(grad, queries, valid, heads * D, D0, D1, D)
            scores = tl.dot(k1, tl.trans(q1), scores, input_precision=PRECISION)
            d_weights = tl.dot(v1, tl.trans(g1), d_weights, input_precision=PRECISION)
        columns = _column_tile(by_column, queries, valid, heads, SIDE, PITCH, ROWS, COLUMNS)
        if ROWS == 1:
            place = by_row + queries * (heads * PITCH) + tl.program_id(0)
            row = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            bias = tl.trans(columns).to(tl.float32) + row[None, :]
        else:
            row_terms = _row_terms(by_row, queries, valid, heads, PITCH, COLUMNS)
            choice = _row_choice(key_row, row_terms.dtype, COLUMNS)
            bias = tl.trans(columns).to(tl.float32) + tl.dot(
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

    dk_start, dv_start = d_qkv + q_offset + D, d_qkv + q_offset + 2 * D
    _store_part(dk_start, keys, exists, stride, dk0 * plain_scale, 0, D0, D)
    _store_part(dv_start, keys, exists, stride, dv0, 0, D0, D)
    if D1 > 0:
        _store_part(dk_start, keys, exists, stride, dk1 * plain_scale, D0, D1, D)
        _store_part(dv_start, keys, exists, stride, dv1, D0, D1, D)
